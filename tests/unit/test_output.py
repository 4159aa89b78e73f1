"""Where a follower of a job's output goes on, from what this try's log files and the cluster's note say."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.slurm import output
from llm_bridge.slurm.output import LONGEST_LINE, Output, lines
from llm_bridge.slurm.watcher import Update

NAME = "attempt-1/output.log"


class Triggerer:
    """Writes what a trigger logs into a file, as Airflow's triggerer does."""

    def __init__(self, folder: Path, job_id: int, try_number: int = 1) -> None:
        self.task_instance = SimpleNamespace(
            id=f"ti-{try_number}", dag_id="d", run_id="r[1]", task_id="t", map_index=-1, try_number=try_number
        )
        where = folder / "dag_id=d" / "run_id=r[1]" / "task_id=t"
        where.mkdir(parents=True, exist_ok=True)
        self.file = where / f"attempt={try_number}.log.trigger.{job_id}.log"
        self.log = self

    def info(self, event: str, *arguments: Any, **more: Any) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps({"event": event % arguments if arguments else event, **more}) + "\n")

    warning = info

    def events(self) -> list[str]:
        return [json.loads(row)["event"] for row in self.file.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path))
    monkeypatch.setattr(output, "HANDOVER_SECONDS", 0.0)
    monkeypatch.setattr(output, "MARK_SECONDS", 1.0)
    monkeypatch.setattr(output, "_followed", set())
    return tmp_path


def test_lines_carry_the_place_where_they_end() -> None:
    assert list(lines("a\r10%\r\n\nグ\nend".encode())) == [("a", 2), ("10%", 7), ("グ", 12), ("end", 15)]


def test_a_line_without_end_is_cut_in_the_log() -> None:
    ((line, end),) = lines(b"x" * 100_000)
    assert end == 100_000 and len(line) < LONGEST_LINE + 50 and "more characters" in line


async def test_the_first_follower_begins_at_the_beginning(folder: Path) -> None:
    assert await Output(Triggerer(folder, 1), NAME).resume(None) == 0  # type: ignore[arg-type]


async def test_a_follower_goes_on_after_the_last_line_of_a_killed_triggerer(folder: Path) -> None:
    killed = Triggerer(folder, 1)
    first = Output(killed, NAME)  # type: ignore[arg-type]
    first.show(Update(log=b"one\ntwo\n"))
    with killed.file.open("a") as stream:
        stream.write('{"event": "three", "loc": "attempt-1/output.log:14')  # killed while it wrote
    # The note lags behind: it is written every few seconds.
    held = {**(first.note or {}), "offset": 4}
    assert await Output(Triggerer(folder, 2), NAME).resume(held) == 8  # type: ignore[arg-type]


async def test_a_log_that_was_truncated_is_written_again(folder: Path) -> None:
    """A triggerer that takes the same trigger up a second time opens its file anew."""
    triggerer = Triggerer(folder, 1)
    first = Output(triggerer, NAME)  # type: ignore[arg-type]
    first.show(Update(log=b"one\ntwo\n"))
    triggerer.file.unlink()
    assert await Output(triggerer, NAME).resume({**(first.note or {}), "offset": 8}) == 0  # type: ignore[arg-type]


async def test_a_triggerer_that_follows_again_after_another_logs_only_what_its_truncated_log_had(
    folder: Path,
) -> None:
    triggerer = Triggerer(folder, 1)
    first = Output(triggerer, NAME)  # type: ignore[arg-type]
    assert await first.resume(None) == 0
    first.show(Update(log=b"one\ntwo\n"))
    other = Triggerer(folder, 2)
    Output(other, NAME).show(Update(log=b"three\n", offset=8))  # type: ignore[arg-type]
    triggerer.file.unlink()
    again = Output(triggerer, NAME)  # type: ignore[arg-type]
    assert await again.resume({**(first.note or {}), "offset": 8}) == 0
    again.show(Update(log=b"one\ntwo\nthree\nfour\n"))
    assert triggerer.events()[1:] == ["one", "two", "four"]


async def test_without_the_other_triggerers_logs_the_note_tells(folder: Path) -> None:
    elsewhere = {"follower": "x", "try": "ti-1", "logs": "another host:/logs", "offset": 4}
    assert await Output(Triggerer(folder, 2), NAME).resume(elsewhere) == 4  # type: ignore[arg-type]


async def test_a_new_try_shows_the_output_from_its_beginning(folder: Path) -> None:
    first = Output(Triggerer(folder, 1), NAME)  # type: ignore[arg-type]
    first.show(Update(log=b"one\n"))
    assert await Output(Triggerer(folder, 1, try_number=2), NAME).resume(first.note) == 0  # type: ignore[arg-type]


async def test_what_a_job_prints_cannot_pass_for_a_place(folder: Path) -> None:
    killed = Triggerer(folder, 1)
    first = Output(killed, NAME)  # type: ignore[arg-type]
    text = json.dumps({"loc": f"{NAME}:99999"}).encode() + b"\n"
    first.show(Update(log=text))
    assert await Output(Triggerer(folder, 2), NAME).resume(first.note) == len(text)  # type: ignore[arg-type]


async def test_what_is_left_out_is_told_with_the_path(folder: Path) -> None:
    triggerer = Triggerer(folder, 1)
    Output(triggerer, NAME).show(Update(log=b"x\n", offset=5_000_000, skipped=4_900_000))  # type: ignore[arg-type]
    said, line = triggerer.events()
    assert "4.9 MB of output are left out" in said and NAME in said and line == "x"


async def test_the_end_is_told_when_the_last_line_is_in_the_log(folder: Path) -> None:
    triggerer = Triggerer(folder, 1)
    triggerer.info("starting")
    slow = Output(triggerer, NAME)  # type: ignore[arg-type]
    said: list[tuple[str, dict[str, Any]]] = []
    slow._log = SimpleNamespace(info=lambda event, **more: said.append((event, more)))  # type: ignore[assignment]
    slow.show(Update(log=b"one\ntwo\n"))
    waiting = asyncio.create_task(slow.written())
    for event, more in said:
        await asyncio.sleep(0.3)
        assert not waiting.done()
        triggerer.info(event, **more)
    async with asyncio.timeout(0.9):
        await waiting
