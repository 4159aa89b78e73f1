"""The choice of a program by the command line."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from llm_bridge.remote.node import __main__ as chooser


def test_a_program_gets_its_own_arguments_and_its_return_value_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []

    def main() -> int:
        seen.append(list(sys.argv))
        return 3

    def import_module(name: str) -> SimpleNamespace:
        assert name == "llm_bridge.remote.node.stages.sft"
        return SimpleNamespace(main=main)

    monkeypatch.setattr(chooser.importlib, "import_module", import_module)
    monkeypatch.setattr(sys, "argv", ["node.pyz", "sft", "settings.json"])
    with pytest.raises(SystemExit) as ended:
        chooser.main()
    assert (ended.value.code, seen) == (3, [["sft", "settings.json"]])


@pytest.mark.parametrize("arguments", [[], ["nope"]])
def test_without_a_known_program_the_usage_lists_all(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["node.pyz", *arguments])
    with pytest.raises(SystemExit) as ended:
        chooser.main()
    assert all(name in str(ended.value.code) for name in chooser.PROGRAMS)
