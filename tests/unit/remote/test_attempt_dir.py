"""The files of an attempt: names, shapes, and how they are written."""

from __future__ import annotations

import ast
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Outcome, Owner, Reason
from testing.paths import PLUGINS

PACKAGE = PLUGINS / "llm_bridge"


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/w/d/r/sft/attempt-12", 12),
        ("/w/d/r/sft/attempt-3/", 3),
        ("/w/d/r/ppo/ray-2", 2),
        ("/w/d/r/ppo/ray-resubmit-4", 4),
        ("/w/d/r/sft", 0),
        ("/w/d/r/sft/attempt-1.json", 0),
    ],
)
def test_an_attempts_number_is_in_its_directorys_name(path: str, number: int) -> None:
    assert attempt_dir.attempt_number(path) == number


def test_names_made_by_the_module_are_read_by_it() -> None:
    assert attempt_dir.attempt_number(attempt_dir.attempt_name(7)) == 7


def test_no_two_files_share_a_name() -> None:
    names = [value for name, value in vars(attempt_dir).items() if name.isupper() and isinstance(value, str)]
    assert len(set(names)) == len(names)


def test_a_shape_survives_its_file_and_leaves_out_what_is_not_known(tmp_path: Path) -> None:
    outcome = Outcome(exit_code=3, ended=12.5)
    attempt_dir.write_json(str(tmp_path / attempt_dir.OUTCOME), outcome)
    assert json.loads((tmp_path / attempt_dir.OUTCOME).read_text()) == {
        "exit_code": 3,
        "ended": 12.5,
        "restarts": 0,
    }
    assert attempt_dir.read_shape(Outcome, str(tmp_path), attempt_dir.OUTCOME) == outcome


def test_what_a_newer_version_has_added_is_dropped() -> None:
    assert attempt_dir.parse(Reason, {"reason": "x", "colour": "red"}) == Reason("x")


@pytest.mark.parametrize("values", [None, [], "text", {"dag_id": "d"}])
def test_what_is_no_such_object_is_none(values: Any) -> None:
    assert attempt_dir.parse(Owner, values) is None


@pytest.mark.parametrize("text", [None, "", '{"exit_'])
def test_a_file_that_is_missing_or_half_written_is_none(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / attempt_dir.OUTCOME).write_text(text)
    assert attempt_dir.read_shape(Outcome, str(tmp_path), attempt_dir.OUTCOME) is None


def test_a_file_is_never_readable_by_others_and_never_half_there(tmp_path: Path) -> None:
    path = tmp_path / "folder" / attempt_dir.OWNER
    attempt_dir.write(str(path), "one")
    assert [stat.S_IMODE(found.stat().st_mode) for found in (path, path.parent)] == [0o600, 0o700]
    before = path.open()
    attempt_dir.write(str(path), "two")
    assert (before.read(), attempt_dir.read(str(path))) == ("one", "two"), "the old file was not touched"
    assert os.listdir(path.parent) == [attempt_dir.OWNER]
    before.close()


def test_nothing_stays_of_a_write_that_failed(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        attempt_dir.write(str(tmp_path / "taken"), "x")
    assert os.listdir(tmp_path) == ["taken"]


# Names that are also keys of JSON objects, programs or ids: only a path with one of them counts.
AMBIGUOUS = {
    *(
        attempt_dir.JOB_ID,
        attempt_dir.SECRETS,
        attempt_dir.PREFLIGHT,
        attempt_dir.HYDRA,
        attempt_dir.RECOVERY,
    ),
    *(attempt_dir.DEADLINE, attempt_dir.PREQUEUED),
}
# stack_dump.py is sent to the nodes alone, without attempt_dir, and looks for the name in command lines.
EXCEPTIONS = {("remote/node/stack_dump.py", attempt_dir.RAY_JOB)}


def file_names() -> set[str]:
    """Return the names of all files and directories of a stage and of an attempt."""
    names = {
        value
        for name, value in vars(attempt_dir).items()
        if name.isupper() and isinstance(value, str) and not name.endswith(("_PREFIX", "_SUFFIX"))
    }
    return names | set(attempt_dir.JOB_ID_CLAIMS)


def name_literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, file name) for each string constant that is a file name or a path with one."""
    names, skipped, in_paths = file_names(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)  # a docstring
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            in_paths |= {node.left, node.right}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("join", "joinpath"):
            in_paths |= set(node.args)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or node in skipped:
            continue
        parts = node.value.split("/")
        known = names - AMBIGUOUS if len(parts) == 1 and node not in in_paths else names
        yield from ((node.lineno, name) for name in parts if name in known)


def test_a_file_name_is_written_nowhere_but_in_this_module() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = str(path.relative_to(PACKAGE))
        if module != "remote/attempt_dir.py":
            found = name_literals(ast.parse(path.read_text(encoding="utf-8")))
            wrong += [f"{path}:{line}: {name!r}" for line, name in found if (module, name) not in EXCEPTIONS]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        'x = "outcome.json"',
        'x = f"{folder}/ray_nodes/{node}.log"',
        'x = folder / "job_id"',
        'x = os.path.join(folder, "secrets")',
        'x = f"{folder}/secrets"',
    ],
)
def test_the_scan_finds_a_file_name(source: str) -> None:
    assert list(name_literals(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    ['"""Writes outcome.json."""', "x = 1  # outcome.json", 'x = job["job_id"]', 'x = "see outcome.json"'],
)
def test_the_scan_passes_docstrings_comments_sentences_and_keys(source: str) -> None:
    assert not list(name_literals(ast.parse(source)))
