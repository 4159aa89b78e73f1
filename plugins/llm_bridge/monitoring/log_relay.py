"""Relay a job's output into the task's log: in order, no line twice, none lost, also when the triggerer dies.

Every line is logged with the offset in the output at which it ends (``loc``), so Airflow's own log files show how
much of the output they have. Beside the output, on the cluster, the lease ``log_lease.TRY.json`` names its current
follower and the offset that it has reached: the next follower resumes there, without the lines after it that this
machine's log files have already, and the one before it sees that it has lost the lease.

A triggerer truncates the log file of a try with each of its triggers (airflow/jobs/triggerer_job_runner.py opens it
with "wb"). Within one try there are several: a triggerer may get a trigger back, and a job that was lost with its
node is followed by another one. What the file had is logged again, and the lease begins at 0 for this: a follower
that replaces this one in between continues to do so.

Repeated lines are preferred to lost ones. There are some if a triggerer is stopped, not killed: it writes the lines
that it had read when it continues, after another one has taken its place. And if a truncated log is written again,
lines that a triggerer on another machine has logged are not known here.

Lines like recent ones are counted, not logged (``log_filter.py``), by each follower for itself: it never counts a line
whose like it has not logged, or seen in the log files of this try. The last line of an output is always logged.
"""

from __future__ import annotations

import asyncio
import glob
import json
import logging
import re
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow.configuration import conf
from airflow.triggers.base import BaseTrigger
from airflow.utils.helpers import log_filename_template_renderer

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import ClusterUnavailable, ConfigError
from llm_bridge.monitoring.log_filter import LogFilter, level_of
from llm_bridge.monitoring.progress import Progress
from llm_bridge.remote.transport import CommandFailed, checked
from llm_bridge.slurm.client import open_client
from llm_bridge.slurm.poller import JobUpdate

# A logger of its own, by which the log view filters its sources.
progress_log = logging.getLogger("progress")

LAST_LINES = 30
MAX_LINE_LENGTH = 8 * 1024
# Delay before the log files are read: the follower that has lost the lease checks it once a second, and may still log
# what it has read.
HANDOVER_SECONDS = 2.5
# For a line to appear in the log file: another process of the triggerer writes what a trigger logs.
LOG_WRITE_TIMEOUT_SECONDS = 5.0
# For the line with which a follower announces itself, after which the log file shows all lines of the one before. It is
# long, because without the file lines would be repeated: a triggerer that was stopped for a while is slow to write.
ANNOUNCEMENT_TIMEOUT_SECONDS = 30.0
# Bytes of an earlier job's output that are logged again, from its beginning.
MAX_REPEATED_BYTES = 1 << 20
# Lines that are logged again before other triggers of the event loop have their turn.
LINES_PER_TURN = 100
# Task instance's id -> paths of the outputs that triggers of this process have followed, in this order.
_followed: dict[str, list[str]] = {}
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|$)")


class LogRelay:
    """Relay of one job's output into the log of one trigger.

    Args:
        trigger: The trigger whose log the lines go to.
        path: The output's path on the cluster; its last two parts (``attempt-1/output.log``) are its name in ``loc``.

    Attributes:
        last: The last LAST_LINES lines.
        step: The newest step of a training, as a sentence; "" without one.
    """

    def __init__(self, trigger: BaseTrigger, path: str) -> None:
        self.last: list[str] = []
        self.step = ""
        self._log = trigger.log
        self._ti: Any = getattr(trigger, "task_instance", None)
        self._path = path
        self._name = _name(path)
        self._follower = uuid.uuid4().hex
        # A trigger of this process has followed this output before.
        self._again = self._ti is not None and path in _followed.get(str(self._ti.id), ())
        # End offsets of lines that this try's log already has and that are read again.
        self._logged: set[int] = set()
        self._progress = Progress()
        self._filter = LogFilter()
        # The newest line, if it was counted and not logged: text and end offset.
        self._counted: tuple[str, int] | None = None
        # End offset of the last line that was logged.
        self._end = 0

    @property
    def lease(self) -> dict[str, Any] | None:
        """Lease to keep on the cluster (:meth:`ClusterPoller.follow`); None outside of a triggerer."""
        if self._ti is None:
            return None
        return {
            "follower": self._follower,
            "try": str(self._ti.id),
            "logs": _log_location(),
            "offset": 0,
            "truncated": self._again,
        }

    @property
    def progress(self) -> dict[str, float]:
        """Newest step of a training; see :class:`~llm_bridge.monitoring.progress.Progress`."""
        return self._progress.latest

    def holds(self, current: dict[str, Any] | None) -> bool:
        """Return whether this relay still holds the lease: no other follower has taken it.

        Args:
            current: The lease on the cluster now; None where there is none.
        """
        return current is None or current["follower"] == self._follower

    async def resume(self, current: dict[str, Any] | None) -> int:
        """Return the offset at which to resume; lines after it that this try's log has already are not logged again.

        Args:
            current: The lease of the follower before this one, if any.

        Returns:
            Offset in the output, in bytes.
        """
        followed = _followed.setdefault(str(self._ti.id), [])
        again = self._path in followed
        if not again:
            followed.append(self._path)
        if current is None or current.get("try") != str(self._ti.id):
            self._log.info(
                "the whole output is in %s on the cluster; repeated lines are counted here", self._path
            )
            return 0
        await asyncio.sleep(HANDOVER_SECONDS)
        here = current["logs"] == _log_location()
        timeout = ANNOUNCEMENT_TIMEOUT_SECONDS if here else LOG_WRITE_TIMEOUT_SECONDS
        # A triggerer that runs the same trigger a second time truncates its log. The lines that were in it are logged
        # again; those that another triggerer has logged in between are not.
        reached: int = 0 if again else current["offset"]
        ends = await self._announce(f"resuming {self._name}", self._name, reached, timeout)
        self._logged = ends or set()
        # Lines that the follower before this one has passed on may not be in the file, if it was killed.
        return min(reached, max(ends, default=0)) if here and ends is not None else reached

    async def repeat_earlier(self, cluster: Cluster) -> None:
        """Log again the output of this try's earlier jobs that the truncated log file had. Call this before following.

        Args:
            cluster: The cluster that has the outputs.
        """
        followed = _followed.get(str(self._ti.id), []) if self._ti else []
        for path in (each for each in followed if each != self._path):
            name = _name(path)
            ends = await self._announce(f"repeating {name}", name, 0, ANNOUNCEMENT_TIMEOUT_SECONDS)
            try:
                async with open_client(cluster) as client:
                    argv = ["head", "-c", str(MAX_REPEATED_BYTES), "--", path]
                    data = (await checked(client.transport, argv)).encode()
            except (ClusterUnavailable, CommandFailed, ConfigError) as error:
                self._log.warning("failed to read %s, which this log had before: %s", path, error)
                continue
            is_cut = len(data) >= MAX_REPEATED_BYTES
            whole = data[: data.rfind(b"\n") + 1] if is_cut else data
            shown = LogFilter()
            for number, (line, end) in enumerate(lines(whole), start=1):
                if shown.shows(line) and end not in (ends or ()):
                    self._log_line(line, f"{name}:{end}", shown)
                if number % LINES_PER_TURN == 0:
                    await asyncio.sleep(0)
            if summary := shown.summary():
                self._log.info("%s", summary)
            if is_cut:
                self._log.warning("... the rest of the output is in %s on the cluster", path)

    def show(self, update: JobUpdate) -> None:
        """Log the new lines of an update, and a summary of each step of a training."""
        if update.skipped:
            self._log.warning(
                "... %.1f MB of output skipped here, to spare Airflow's log: the whole output is in %s on the cluster",
                update.skipped / 1e6, self._path,
            )  # fmt: skip
        for line, end in lines(update.log):
            place = update.offset + end
            shows, is_logged = self._filter.shows(line), place in self._logged
            self._counted = None if shows or is_logged else (line, place)
            if shows and not is_logged:
                self._end = place
                self._log_line(line, f"{self._name}:{place}", self._filter)
            self.last = [*self.last[1 - LAST_LINES :], line]
            if step := self._progress.read(line):
                self.step = step
                if not is_logged:
                    progress_log.info("%s", step)

    def _log_line(self, line: str, loc: str, counts: LogFilter) -> None:
        """Log a line on the level that it names, and how often the filter has counted it before."""
        getattr(self._log, logging.getLevelName(level_of(line)).lower())(line, loc=loc)
        if repeats := counts.repeats(line):
            times = "once" if repeats == 1 else f"{repeats} times"
            self._log.info("the line above was repeated %s before", times)

    def finish(self) -> None:
        """Log the last line, also if it was counted, and how many lines were not logged. Call this at the end."""
        if summary := self._filter.summary():
            self._log.info("%s", summary)
        if self._counted:
            line, self._end = self._counted
            self._log_line(line, f"{self._name}:{self._end}", self._filter)
            self._counted = None

    async def written(self) -> None:
        """Finish, and wait until the last line is in the log file, for at most LOG_WRITE_TIMEOUT_SECONDS.

        A trigger's lines and its event reach the process that writes them separately. If that process were killed in
        between, the task would resume and the lines would never be logged.
        """
        self.finish()
        deadline = time.monotonic() + LOG_WRITE_TIMEOUT_SECONDS
        while self._ti is not None and self._end and not await asyncio.to_thread(self._last_line_is_written):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.1)

    def _last_line_is_written(self) -> bool:
        wanted = f'"{self._name}:{self._end}"'.encode()
        for file in self._files():
            with file.open("rb") as stream:
                stream.seek(max(0, file.stat().st_size - 8 * MAX_LINE_LENGTH))
                if wanted in stream.read():
                    return True
        return False

    def _files(self) -> Iterator[Path]:
        """Return the log files on this machine in which triggers of this try have written."""
        pattern = f"{glob.escape(log_filename_template_renderer()(ti=self._ti))}.trigger.*.log"
        return Path(conf.get("logging", "base_log_folder")).glob(pattern)

    async def _announce(self, text: str, name: str, after: int, timeout: float) -> set[int] | None:
        """Log a line and wait until it is in the log file, which then has all lines of the follower before this one.

        Args:
            text: The line.
            name: As for :meth:`_read_log_files`, whose result is returned.
            after: Likewise.
            timeout: Seconds.

        Returns:
            None if the line was not in the file in time.
        """
        self._log.info(text, loc=f"follower {self._follower}")
        deadline = time.monotonic() + timeout
        ends = None
        while ends is None and time.monotonic() < deadline:
            await asyncio.sleep(0.25)
            ends = await asyncio.to_thread(self._read_log_files, name, after)
        return ends

    def _read_log_files(self, name: str, after: int) -> set[int] | None:
        """Return the end offsets of an output's lines in this try's log files on this machine.

        Args:
            name: The output's name in ``loc``.
            after: Offset after which all of them are returned; before it only the largest.

        Returns:
            None if the files do not yet have the line with which this follower announced itself.
        """
        ends: set[int] = set()
        last, complete = 0, False
        for file in self._files():
            with file.open("rb") as stream:
                for row in stream:
                    complete = complete or self._follower.encode() in row
                    if f'"{name}:'.encode() in row:
                        end = _end_in(row, name)
                        last = max(last, end)
                        if end > after:
                            ends.add(end)
        return ends | {last} if complete else None


def lines(data: bytes) -> Iterator[tuple[str, int]]:
    """Split output into lines; a progress bar's carriage returns end a line, too.

    Args:
        data: Whole lines.

    Yields:
        (line, offset of its end in ``data``) of every line that is not blank; long lines are cut.
    """
    for found in _LINE.finditer(data):
        text = found.group(1).decode("utf-8", "replace")
        if text.strip():
            more = len(text) - MAX_LINE_LENGTH
            yield f"{text[:MAX_LINE_LENGTH]} ... ({more} more characters)" if more > 0 else text, found.end()


def _name(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def _end_in(row: bytes, name: str) -> int:
    try:
        name_in_row, _, end = str(json.loads(row).get("loc", "")).rpartition(":")
    except ValueError:  # cut off when the triggerer was killed
        return 0
    return int(end) if name_in_row == name and end.isdigit() else 0


def _log_location() -> str:
    """Return an identifier of the log folder: followers that share it read each other's log files."""
    return f"{socket.gethostname()}:{conf.get('logging', 'base_log_folder')}"
