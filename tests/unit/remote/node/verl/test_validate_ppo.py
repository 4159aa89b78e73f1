"""Errors of verl's own checks; tests/verl runs them with verl."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.verl.validate_ppo import _check


def raising(error: Exception) -> Callable[[], None]:
    def check() -> None:
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\n  b"), "x: verl refuses the settings: a b"),
        (AssertionError(), "x: verl refuses the settings: AssertionError"),
    ],
)
def test_what_verl_raises_is_the_reason(error: Exception, text: str) -> None:
    with pytest.raises(JobError) as raised:
        _check("x: ", raising(error))
    assert (str(raised.value), raised.value.kind) == (text, "bad_config")


def test_a_library_that_this_node_lacks_leaves_the_check_to_the_gpu_nodes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _check("", raising(ImportError("libcuda.so.1: cannot open shared object file")))
    assert "cannot check the settings of PPO on this node: libcuda.so.1" in capsys.readouterr().out
