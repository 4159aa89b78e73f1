"""Explanation of a Ray job's end: its exit code, and Ray's error type."""

from __future__ import annotations

import pytest

from llm_bridge.operators.exceptions import RayJobFailed
from llm_bridge.ray.client import RayJobDetails, RayTarget
from llm_bridge.ray.errors import ERROR_TYPES, describe_end, describe_exit_code
from llm_bridge.ray.events import RayEndReason, RayJobEvent
from llm_bridge.remote.attempt_dir import Outcome

TARGET = RayTarget(address="http://ray.example.org:8265")


@pytest.mark.parametrize(
    ("code", "meaning"),
    [(137, "memory"), (-9, "memory"), (139, "native code"), (127, "not found"), (3, ""), (0, ""), (None, "")],
)
def test_an_exit_code_with_a_meaning_is_explained(code: int | None, meaning: str) -> None:
    text = describe_exit_code(code)
    assert (meaning in text) if meaning else text == ""


@pytest.mark.parametrize("error_type", ERROR_TYPES)
def test_every_error_type_of_ray_becomes_a_clause_in_the_message(error_type: str) -> None:
    job = RayJobDetails("FAILED", "m", error_type)
    text = str(RayJobFailed(RayJobEvent(RayEndReason.FAILED, job=job, target=TARGET, submission_id="j")))
    assert f"(error_type {error_type}): {ERROR_TYPES[error_type]}" in text


def test_the_wrappers_exit_code_takes_precedence_over_rays_error_type() -> None:
    job = RayJobDetails("FAILED", error_type="JOB_ENTRYPOINT_COMMAND_ERROR", driver_exit_code=1)
    assert "memory" in describe_end(job, Outcome(137, 2.0))
    assert describe_end(job, None) == ERROR_TYPES["JOB_ENTRYPOINT_COMMAND_ERROR"]
    assert describe_end(None, None) == ""
