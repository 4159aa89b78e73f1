"""Offset at which a follower of a job's output resumes, from the log files of this try and the lease on the cluster."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.monitoring import log_relay
from llm_bridge.monitoring.log_relay import MAX_LINE_LENGTH, LogRelay, lines
from llm_bridge.slurm.poller import JobUpdate

NAME = "attempt-1/output.log"
COUNTED = "repeated lines are counted here"


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

    warning = error = info

    def events(self) -> list[str]:
        return [json.loads(row)["event"] for row in self.file.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path))
    monkeypatch.setattr(log_relay, "HANDOVER_SECONDS", 0.0)
    monkeypatch.setattr(log_relay, "LOG_WRITE_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(log_relay, "ANNOUNCEMENT_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(log_relay, "_followed", {})
    return tmp_path


def test_lines_have_the_offset_of_their_end() -> None:
    assert list(lines("a\r10%\r\n\nグ\nend".encode())) == [("a", 2), ("10%", 7), ("グ", 12), ("end", 15)]


def test_a_very_long_line_is_cut_in_the_log() -> None:
    ((line, end),) = lines(b"x" * 100_000)
    assert end == 100_000 and len(line) < MAX_LINE_LENGTH + 50 and "more characters" in line


async def test_the_first_follower_starts_at_the_beginning(folder: Path) -> None:
    assert await LogRelay(Triggerer(folder, 1), NAME).resume(None) == 0  # type: ignore[arg-type]


async def test_a_follower_resumes_after_the_last_line_of_a_killed_triggerer(folder: Path) -> None:
    killed = Triggerer(folder, 1)
    first = LogRelay(killed, NAME)  # type: ignore[arg-type]
    first.show(JobUpdate(log=b"one\ntwo\n"))
    with killed.file.open("a") as stream:
        stream.write('{"event": "three", "loc": "attempt-1/output.log:14')  # killed while it wrote
    # The offset in the lease is older: it is written every few seconds.
    lease = {**(first.lease or {}), "offset": 4}
    second = LogRelay(Triggerer(folder, 2), NAME)  # type: ignore[arg-type]
    assert await second.resume(lease) == 4
    second.show(JobUpdate(log=b"two\nthree\n", offset=4))
    assert second._log.events()[1:] == ["three"]  # type: ignore[attr-defined]


async def test_lines_that_a_killed_triggerer_had_read_and_not_written_are_logged(folder: Path) -> None:
    first = LogRelay(Triggerer(folder, 1), NAME)  # type: ignore[arg-type]
    first.show(JobUpdate(log=b"one\ntwo\n"))
    lease = {**(first.lease or {}), "offset": 14}
    assert await LogRelay(Triggerer(folder, 2), NAME).resume(lease) == 8  # type: ignore[arg-type]


async def test_a_log_that_was_truncated_is_written_again(folder: Path) -> None:
    """A triggerer that runs the same trigger a second time truncates its file."""
    triggerer = Triggerer(folder, 1)
    first = LogRelay(triggerer, NAME)  # type: ignore[arg-type]
    first.show(JobUpdate(log=b"one\ntwo\n"))
    triggerer.file.unlink()
    assert await LogRelay(triggerer, NAME).resume({**(first.lease or {}), "offset": 8}) == 0  # type: ignore[arg-type]


async def test_a_triggerer_that_follows_again_after_another_logs_only_what_its_truncated_log_had(
    folder: Path,
) -> None:
    triggerer = Triggerer(folder, 1)
    first = LogRelay(triggerer, NAME)  # type: ignore[arg-type]
    assert await first.resume(None) == 0
    first.show(JobUpdate(log=b"one\ntwo\n"))
    other = Triggerer(folder, 2)
    LogRelay(other, NAME).show(JobUpdate(log=b"three\n", offset=8))  # type: ignore[arg-type]
    triggerer.file.unlink()
    again = LogRelay(triggerer, NAME)  # type: ignore[arg-type]
    assert await again.resume({**(first.lease or {}), "offset": 8}) == 0
    again.show(JobUpdate(log=b"one\ntwo\nthree\nfour\n"))
    assert triggerer.events()[1:] == ["one", "two", "four"]


async def test_a_truncated_log_is_written_again_also_by_the_follower_of_one_that_was_killed_meanwhile(
    folder: Path,
) -> None:
    triggerer = Triggerer(folder, 1)
    first = LogRelay(triggerer, NAME)  # type: ignore[arg-type]
    await first.resume(None)
    assert not (first.lease or {})["truncated"]
    first.show(JobUpdate(log=b"one\ntwo\n"))
    LogRelay(Triggerer(folder, 2), NAME).show(JobUpdate(log=b"three\n", offset=8))  # type: ignore[arg-type]
    triggerer.file.unlink()
    again = LogRelay(triggerer, NAME)  # type: ignore[arg-type]
    # With this the lease on the cluster begins at 0, before anything is logged again.
    lease = again.lease or {}
    assert lease["truncated"] and lease["offset"] == 0
    third = LogRelay(Triggerer(folder, 3), NAME)  # type: ignore[arg-type]
    log_relay._followed.clear()  # of another process
    assert await third.resume(lease) == 0
    third.show(JobUpdate(log=b"one\ntwo\nthree\nfour\n"))
    assert third._log.events()[1:] == ["one", "two", "four"]  # type: ignore[attr-defined]


async def test_a_truncated_log_is_written_again_where_the_other_triggerer_is_on_another_machine(
    folder: Path,
) -> None:
    triggerer = Triggerer(folder, 1)
    first = LogRelay(triggerer, NAME)  # type: ignore[arg-type]
    await first.resume(None)
    lease = {**(first.lease or {}), "logs": "another host:/logs", "offset": 8}
    assert await LogRelay(triggerer, NAME).resume(lease) == 0  # type: ignore[arg-type]


async def test_the_output_of_an_earlier_job_of_the_same_try_is_logged_again(
    folder: Path, tmp_path: Path
) -> None:
    """A job that was lost with its node is followed by another one, whose trigger truncates the log."""
    paths = [tmp_path / "stage" / f"attempt-{number}" / "output.log" for number in (1, 2)]
    paths[0].parent.mkdir(parents=True)
    paths[0].write_text("one\ntwo\nthree\n")
    here = Cluster(name="here", ssh_conn_id=None, workspace=str(tmp_path), gpus_per_node=1)
    triggerer = Triggerer(folder, 1)
    first = LogRelay(triggerer, str(paths[0]))  # type: ignore[arg-type]
    await first.repeat_earlier(here)
    await first.resume(None)
    first.show(JobUpdate(log=b"one\ntwo\n"))
    other = LogRelay(Triggerer(folder, 2), str(paths[0]))  # type: ignore[arg-type]
    other.show(JobUpdate(log=b"three\n", offset=8))
    triggerer.file.unlink()
    second = LogRelay(triggerer, str(paths[1]))  # type: ignore[arg-type]
    await second.repeat_earlier(here)
    await second.resume(None)
    second.show(JobUpdate(log=b"four\n"))
    repeated, *shown = triggerer.events()
    assert repeated == "repeating attempt-1/output.log"
    assert shown == ["one", "two", f"the whole output is in {paths[1]} on the cluster; {COUNTED}", "four"]


async def test_a_long_output_of_an_earlier_job_is_cut_after_a_line_and_names_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_relay, "MAX_REPEATED_BYTES", 6)
    earlier = tmp_path / "attempt-1" / "output.log"
    earlier.parent.mkdir()
    earlier.write_text("one\ntwo\nthree\n")
    here = Cluster(name="here", ssh_conn_id=None, workspace=str(tmp_path), gpus_per_node=1)
    triggerer = Triggerer(folder, 1)
    await LogRelay(triggerer, str(earlier)).resume(None)  # type: ignore[arg-type]
    await LogRelay(triggerer, "attempt-2/output.log").repeat_earlier(here)  # type: ignore[arg-type]
    assert triggerer.events()[2:] == ["one", f"... the rest of the output is in {earlier} on the cluster"]


async def test_an_earlier_output_that_cannot_be_read_is_a_warning(folder: Path, tmp_path: Path) -> None:
    here = Cluster(name="here", ssh_conn_id=None, workspace=str(tmp_path), gpus_per_node=1)
    triggerer = Triggerer(folder, 1)
    await LogRelay(triggerer, "/no/attempt-1/output.log").resume(None)  # type: ignore[arg-type]
    await LogRelay(triggerer, "attempt-2/output.log").repeat_earlier(here)  # type: ignore[arg-type]
    assert "failed to read /no/attempt-1/output.log" in triggerer.events()[2]


async def test_without_the_other_triggerers_logs_the_offset_of_the_lease_counts(folder: Path) -> None:
    lease = {"follower": "x", "try": "ti-1", "logs": "another host:/logs", "offset": 4}
    assert await LogRelay(Triggerer(folder, 2), NAME).resume(lease) == 4  # type: ignore[arg-type]


async def test_a_new_try_relays_the_output_from_its_beginning(folder: Path) -> None:
    first = LogRelay(Triggerer(folder, 1), NAME)  # type: ignore[arg-type]
    first.show(JobUpdate(log=b"one\n"))
    assert await LogRelay(Triggerer(folder, 1, try_number=2), NAME).resume(first.lease) == 0  # type: ignore[arg-type]


async def test_output_that_imitates_an_offset_is_ignored(folder: Path) -> None:
    killed = Triggerer(folder, 1)
    first = LogRelay(killed, NAME)  # type: ignore[arg-type]
    text = json.dumps({"loc": f"{NAME}:99999"}).encode() + b"\n"
    first.show(JobUpdate(log=text))
    lease = {**(first.lease or {}), "offset": 1000}
    assert await LogRelay(Triggerer(folder, 2), NAME).resume(lease) == len(text)  # type: ignore[arg-type]


async def test_skipped_output_is_logged_with_its_size_and_path(folder: Path) -> None:
    triggerer = Triggerer(folder, 1)
    LogRelay(triggerer, NAME).show(JobUpdate(log=b"x\n", offset=5_000_000, skipped=4_900_000))  # type: ignore[arg-type]
    warning, line = triggerer.events()
    assert "4.9 MB of output skipped here" in warning and NAME in warning and line == "x"


async def test_the_relay_waits_until_its_last_line_is_in_the_log_file(folder: Path) -> None:
    triggerer = Triggerer(folder, 1)
    triggerer.info("starting")
    slow = LogRelay(triggerer, NAME)  # type: ignore[arg-type]
    logged: list[tuple[str, dict[str, Any]]] = []
    slow._log = SimpleNamespace(info=lambda event, **more: logged.append((event, more)))  # type: ignore[assignment]
    slow.show(JobUpdate(log=b"one\ntwo\n"))
    waiting = asyncio.create_task(slow.written())
    for event, more in logged:
        await asyncio.sleep(0.3)
        assert not waiting.done()
        triggerer.info(event, **more)
    async with asyncio.timeout(0.9):
        await waiting


async def test_repeated_lines_are_counted_and_the_last_line_is_shown_with_its_offset(folder: Path) -> None:
    triggerer = Triggerer(folder, 1)
    relay = LogRelay(triggerer, NAME)  # type: ignore[arg-type]
    relay.show(JobUpdate(log=b"one\ntwo\none\n"))
    relay.show(JobUpdate(log=b"three\none\n", offset=12))
    await relay.written()
    rows = [json.loads(row) for row in triggerer.file.read_text().splitlines()]
    assert [(row["event"], row.get("loc")) for row in rows] == [
        ("one", f"{NAME}:4"),
        ("two", f"{NAME}:8"),
        ("three", f"{NAME}:18"),
        ("not shown above: 2 repeated lines; most often, 2 times: one", None),
        ("one", f"{NAME}:22"),
    ]


async def test_a_line_counted_by_a_killed_triggerer_is_not_shown_twice_by_the_next(folder: Path) -> None:
    first = LogRelay(Triggerer(folder, 1), NAME)  # type: ignore[arg-type]
    first.show(JobUpdate(log=b"one\ntwo\none\n"))
    lease = {**(first.lease or {}), "offset": 4}
    second = LogRelay(Triggerer(folder, 2), NAME)  # type: ignore[arg-type]
    assert await second.resume(lease) == 4
    second.show(JobUpdate(log=b"two\none\ntwo\nthree\n", offset=4))
    # "two" was in the log; "one" is the first of its kind for this follower.
    assert second._log.events()[1:] == ["one", "three"]  # type: ignore[attr-defined]


async def test_steps_are_logged_by_a_logger_of_their_own_and_not_again_after_a_change_of_triggerer(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    step = b"step:1 - train/loss:0.5\n"
    first = LogRelay(Triggerer(folder, 1), NAME)  # type: ignore[arg-type]
    first.show(JobUpdate(log=step))
    second = LogRelay(Triggerer(folder, 2), NAME)  # type: ignore[arg-type]
    await second.resume({**(first.lease or {}), "offset": 0})
    second.show(JobUpdate(log=step))
    assert [(row.name, row.getMessage()) for row in caplog.records] == [("progress", "step 1, loss 0.5")]
    assert second.step == "step 1, loss 0.5"
