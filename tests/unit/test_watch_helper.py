"""include/login/watch.py: whole lines, floods, and whose turn it is to follow."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[2] / "include" / "login" / "watch.py"
spec = importlib.util.spec_from_file_location("watch", PATH)
assert spec and spec.loader
watch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(watch)


def look(folder: Path, offset: int | None = 0, **more: Any) -> dict[str, Any]:
    log = {"offset": offset, "max_bytes": 1000, "room": 10_000, "final": False, **more.pop("log", {})}
    job = {
        "directory": str(folder),
        "files": [],
        "log": log if offset is not None else None,
        "note": None,
        "claim": False,
    }
    seen = watch.look({**job, **more})
    seen["log"] = base64.b64decode(seen["log"])
    return seen


def test_a_line_comes_when_it_is_complete_or_the_job_has_ended(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_bytes(b"one\ntwo")
    seen = look(tmp_path)
    assert (seen["log"], seen["more"]) == (b"one\n", False)
    seen = look(tmp_path, 4)
    assert (seen["log"], seen["offset"]) == (b"", 4)
    assert look(tmp_path, 4, log={"final": True})["log"] == b"two"


def test_a_progress_bar_is_not_held_back_until_its_line_ends(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_bytes(b"10%\r20%\r30")
    assert look(tmp_path)["log"] == b"10%\r20%\r"


def test_a_line_longer_than_a_look_comes_in_parts_that_cut_no_character(tmp_path: Path) -> None:
    text = "グ" * 100
    (tmp_path / "output.log").write_text(text)
    offset, parts = 0, []
    while True:
        seen = look(tmp_path, offset, log={"max_bytes": 100, "final": True})
        parts.append(seen["log"].decode())
        offset += len(seen["log"])
        if not seen["more"]:
            break
    assert "".join(parts) == text and len(parts) > 2


def test_more_than_there_is_room_for_is_skipped_up_to_a_line_near_the_end(tmp_path: Path) -> None:
    lines = b"".join(b"line %06d\n" % n for n in range(10_000))
    (tmp_path / "output.log").write_bytes(lines)
    seen = look(tmp_path)
    assert seen["skipped"] == seen["offset"] > 50_000
    assert seen["log"].startswith(b"line 00") and lines[: seen["offset"]].endswith(b"\n")


def test_a_log_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert look(tmp_path)["log"] == b""


def test_half_written_json_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text('{"exit_')
    assert look(tmp_path, files=["outcome.json"])["files"] == {"outcome.json": None}


def test_who_claims_the_output_learns_of_the_one_before_who_gets_no_more(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_bytes(b"one\n")
    first = {"follower": "a", "try": "1", "logs": "x", "offset": 0}
    assert look(tmp_path, None, note=first, claim=True)["held"] is None
    assert look(tmp_path, note=first)["log"] == b"one\n"
    second = {"follower": "b", "try": "1", "logs": "y", "offset": 0}
    assert look(tmp_path, None, note=second, claim=True)["held"] == first
    # Until the second has found out where to go on, the way so far stays known for a third.
    assert json.loads((tmp_path / "follower.1.json").read_text()) == {**first, "follower": "b"}
    taken = look(tmp_path, note=first)
    assert taken["taken"] and taken["log"] == b""
    assert not look(tmp_path, note=second)["taken"]


def test_another_task_that_shows_the_same_output_takes_nothing_away(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_bytes(b"one\n")
    notes = [{"follower": name, "try": name, "logs": "x", "offset": 0} for name in ("a", "b")]
    for note in notes:
        assert look(tmp_path, None, note=note, claim=True)["held"] is None
    assert [look(tmp_path, note=note)["log"] for note in notes] == [b"one\n"] * 2


@pytest.mark.parametrize("text", [b"", b"abc", "aグ".encode(), b"\xff\xfe"])
def test_forced_parts_lose_nothing(text: bytes) -> None:
    part = watch.whole_lines(text, force=True)
    assert text.startswith(part) and (part or not text)
