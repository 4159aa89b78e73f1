"""A job's output as lines of the task's log: in order, none twice, none lost, whatever becomes of the triggerer.

Every line is logged with the place in the output where it ends (``loc``), so what Airflow has of the output can be read
from its own log files. Beside the output, on the cluster, ``follower.TRY.json`` says who follows it and how far: it
tells a follower on another machine where to go on, and the one before it that it has been replaced.
"""

from __future__ import annotations

import asyncio
import glob
import json
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

from llm_bridge.progress import Progress
from llm_bridge.slurm.watcher import Update

LAST_LINES = 30
LONGEST_LINE = 8 * 1024
# The follower before this one may be just about to log what it has read: it looks at its note once a second.
HANDOVER_SECONDS = 2.5
# The triggerer writes what a trigger logs from another process.
MARK_SECONDS = 5.0
# (task instance's id, output) of what triggers of this process have followed.
_followed: set[tuple[str, str]] = set()
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|$)")


class Output:
    """What one trigger has shown of one job's output.

    :param trigger: whose log it goes to.
    :param path: of the output on the cluster; its last two parts (``attempt-1/output.log``) are its name in ``loc``.
    """

    def __init__(self, trigger: BaseTrigger, path: str) -> None:
        self.last: list[str] = []
        # The newest step of a training, as a sentence.
        self.step = ""
        self._log = trigger.log
        self._ti: Any = getattr(trigger, "task_instance", None)
        self._path = path
        self._name = "/".join(Path(path).parts[-2:])
        self._mark = uuid.uuid4().hex
        # Ends of lines that this try's log has although they come again.
        self._has: set[int] = set()
        self._progress = Progress()
        # Where the last line ends that was logged.
        self._end = 0

    @property
    def note(self) -> dict[str, Any] | None:
        """What to keep on the cluster (:meth:`Watcher.follow`); None outside of a triggerer."""
        if self._ti is None:
            return None
        return {"follower": self._mark, "try": str(self._ti.id), "logs": _logs_here(), "offset": 0}

    def is_mine(self, held: dict[str, Any] | None) -> bool:
        """Whether nobody else has followed this try's output since.

        :param held: the note on the cluster now.
        """
        return held is None or held["follower"] == self._mark

    async def resume(self, held: dict[str, Any] | None) -> int:
        """Where to go on: after the last line that this try's log has.

        :param held: the note of the follower before this one, if any.
        """
        us = (str(self._ti.id), self._name)
        again = us in _followed
        _followed.add(us)
        if held is None or held.get("try") != str(self._ti.id):
            return 0
        await asyncio.sleep(HANDOVER_SECONDS)
        self._log.info("following %s again", self._name, loc=f"follower {self._mark}")
        ends = None
        for _ in range(int(MARK_SECONDS / 0.25)):
            await asyncio.sleep(0.25)
            ends = await asyncio.to_thread(self._shown, again)
            if ends is not None:
                break
        if held["logs"] != _logs_here() or ends is None:
            return max(held["offset"], *(ends or ()), 0)
        if again:
            # A triggerer that takes a trigger up a second time truncates its log. The lines that were in it are logged
            # again, those that another triggerer has logged meanwhile are not.
            self._has = ends
            return 0
        return max(ends, default=0)

    def show(self, update: Update) -> None:
        """Log what has come."""
        if update.skipped:
            self._log.warning(
                "... %.1f MB of output are left out here, to spare Airflow's log: all of it is in %s on the cluster",
                update.skipped / 1e6, self._path,
            )  # fmt: skip
        for line, end in lines(update.log):
            if update.offset + end not in self._has:
                self._end = update.offset + end
                self._log.info(line, loc=f"{self._name}:{self._end}")
            self.last = [*self.last[1 - LAST_LINES :], line]
            if step := self._progress.read(line):
                self.step = step
                self._log.info("[progress] %s", step)

    async def written(self) -> None:
        """Wait until the last line is in the log file.

        A trigger's lines and its event take two ways to the process that writes them. Were that one killed in between,
        the task would go on and nobody would ever log the lines.
        """
        deadline = time.monotonic() + MARK_SECONDS
        while self._ti is not None and self._end and not await asyncio.to_thread(self._last_is_there):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.1)

    def _last_is_there(self) -> bool:
        wanted = f'"{self._name}:{self._end}"'.encode()
        for file in self._files():
            with file.open("rb") as stream:
                stream.seek(max(0, file.stat().st_size - 8 * LONGEST_LINE))
                if wanted in stream.read():
                    return True
        return False

    def _files(self) -> Iterator[Path]:
        """This try's log files of triggers here."""
        pattern = f"{glob.escape(log_filename_template_renderer()(ti=self._ti))}.trigger.*.log"
        return Path(conf.get("logging", "base_log_folder")).glob(pattern)

    def _shown(self, every: bool) -> set[int] | None:
        """Ends of the lines in this try's log files here, or of the last; None if they lack what was just logged."""
        ends: set[int] = set()
        marked = False
        for file in self._files():
            with file.open("rb") as stream:
                for row in stream:
                    marked = marked or self._mark.encode() in row
                    if f'"{self._name}:'.encode() in row:
                        ends.add(_end_in(row, self._name))
                        if not every:
                            ends = {max(ends)}
        return ends if marked else None


def lines(data: bytes) -> Iterator[tuple[str, int]]:
    """(line, offset of its end) of every line that is not blank; a progress bar's carriage returns are line ends."""
    for found in _LINE.finditer(data):
        text = found.group(1).decode("utf-8", "replace")
        if text.strip():
            more = len(text) - LONGEST_LINE
            yield f"{text[:LONGEST_LINE]} ... ({more} more characters)" if more > 0 else text, found.end()


def _end_in(row: bytes, name: str) -> int:
    try:
        where, _, end = str(json.loads(row).get("loc", "")).rpartition(":")
    except ValueError:  # cut off as the triggerer was killed
        return 0
    return int(end) if where == name and end.isdigit() else 0


def _logs_here() -> str:
    return f"{socket.gethostname()}:{conf.get('logging', 'base_log_folder')}"
