"""Reduce a job's output to what people read: repeats are counted, progress bars shown now and then, levels kept.

Nothing is lost by it: the whole output stays in its file on the cluster, from which diagnoses are made. A line that
differs from all recent ones by more than a time, a process id or a hexadecimal id is shown at once.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")

# A line like one that was shown less than this before is counted.
WINDOW_SECONDS = 600.0
# Lines of which repeats are recognized; the oldest is dropped first. The same limit holds for processes and bars.
MAX_KEYS = 2000
# Interval of showing a progress bar that is not complete.
BAR_SECONDS = 60.0
# A printed configuration (verl's has 900 lines) is shown to its tenth line.
MAX_STRUCTURE_LINES = 10
# After this number of tracebacks their lines are counted like others: 64 ranks may fail for the same reason.
MAX_WHOLE_TRACEBACKS = 8
MAX_QUOTED_LENGTH = 160
# Kinds of lines that are counted, in the summary; and each of them where there is one.
BARS, REPEATS, SETTINGS = "states of progress bars", "repeated lines", "lines of printed settings"
_ONE = {BARS: "state of a progress bar", REPEATS: "repeated line", SETTINGS: "line of printed settings"}

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
# Ray's "(WorkerDict pid=341, ip=10.77.0.12) ", srun's "[n1] ", PyTorch's "[rank0]:".
_SOURCE = re.compile(r"^(?:\((?:[\w.:-]+ )?pid=[^)]*\) ?|\[[\w.:-]+\] |\[rank\d+\]: ?)+")
_RAY_REPEATS = re.compile(r" ?\[repeated \d+x across cluster\].*$")
_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]"), ""),
    (re.compile(r"\b([IWEF])\d{4} (?=\d\d:)"), r"\1 "),  # glog's level and day
    (re.compile(r"\b\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?(?: \d+(?= ))?"), "TIME"),
    (re.compile(r"\bpid[= ]\d+"), "pid"),
    (re.compile(r"\b(?:0x[0-9a-f]+|(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{12,})\b"), "ID"),
)
# A bar's end "[00:01<00:01, 1.13it/s]", and the count before it. All repetitions are limited, as is the text that
# they are searched in: otherwise a line of 8 KiB of digits blocks the triggerer's event loop for hours.
_BAR_TIMES = re.compile(r" \[\d\d:\d\d[^\[\]]{0,200}\]$")
_BAR_COUNT = re.compile(
    r"(?:(?P<percent>\d{1,3})%\|[^|]{0,200}\|)? ?[\d.,]{1,20}\w{0,5}(?:/\S{1,20})?(?: \w{1,20})?$"
)
MAX_BAR_LENGTH = 400
_STRUCTURE = re.compile(r"""^\s+(?:['"\[{(]|-?\d[\d.e-]*[\],}]|(?:None|True|False)[\],}]).*$""")
# Ray may pass on a printed line in pieces: "'fsdp_size': ", "-1", ", ".
_LITERAL = re.compile(r"""'[^']*'|"[^"]*"|-?\d[\d.e+-]*|None|True|False""")
_TRACEBACK = "Traceback (most recent call last):"
_LEVEL = re.compile(
    r"(?<!['\"\w])(?:(?P<error>ERROR|CRITICAL|FATAL)|(?P<warning>WARN|WARNING))\b"
    r"|^\[?(?P<glog>[WEF])\d{4} \d\d:"
    r"|(?P<python_warning>\b\w*Warning: )"
    r"|^(?P<python_error>Traceback \(most recent call last\):|[\w.]*(?:Error|Exception): )"
)
# A level is named at the beginning of a line; later the words are part of the text.
MAX_LEVEL_PREFIX = 200


@dataclass
class _Shown:
    """A line that was shown; its text only once it was repeated, because lines may be long."""

    at: float
    repeats: int = 0
    text: str = ""


@dataclass
class _Source:
    """State of the lines of one process."""

    in_traceback: bool = False
    structure_lines: int = 0


class LogFilter:
    """Filter of one output, line by line.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shown: OrderedDict[int, _Shown] = OrderedDict()
        self._bars: dict[str, float] = {}
        self._sources: dict[str, _Source] = {}
        self._tracebacks = 0
        self._counts: Counter[str] = Counter()
        self._repeats: Counter[int] = Counter()

    def shows(self, line: str) -> bool:
        """Return True if the line is to be shown, and count it otherwise.

        Args:
            line: A line that is not blank, without its end.
        """
        prefix, body = _split(line)
        if not body.strip():  # a prefix alone
            return False
        if (bar := _bar(body)) is not None:
            return self._shows_bar(*bar)
        source = _entry(self._sources, prefix, _Source())
        if self._is_in_traceback(source, body):
            return True
        inside = _STRUCTURE.match(body) or (source.structure_lines and _is_fragment(body))
        source.structure_lines = source.structure_lines + 1 if inside else 0
        if source.structure_lines > MAX_STRUCTURE_LINES:
            self._counts[SETTINGS] += 1
            return False
        return self._is_new(_key(body))

    def repeats(self, line: str) -> int:
        """Return the number of repeats that were counted before the line is shown again; then they count as reported.

        Args:
            line: A line for which :meth:`shows` has returned True.
        """
        body = _split(line)[1]
        bar = _bar(body)
        return self._repeats.pop(hash(_complete(bar[0]) if bar else _key(body)), 0)

    def summary(self) -> str:
        """Return a line on what was counted since the last summary; "" if nothing was."""
        counts, self._counts = +self._counts, Counter()
        often = [(shown.repeats, shown.text) for shown in self._shown.values() if shown.repeats]
        for shown in self._shown.values():
            shown.repeats = 0
        if not counts:
            return ""
        parts = [f"{number} {_ONE[what] if number == 1 else what}" for what, number in counts.most_common()]
        text = f"not shown above: {', '.join(parts)}"
        if often:
            number, line = max(often)
            text += f"; most often, {number} {'time' if number == 1 else 'times'}: {line}"
        return text

    def _shows_bar(self, what: str, is_complete: bool) -> bool:
        now = self._clock()
        since = _entry(self._bars, what, now)
        if is_complete:
            return self._is_new(_complete(what))
        if now - since >= BAR_SECONDS:
            self._bars[what] = now
            return True
        self._counts[BARS] += 1
        return False

    def _is_in_traceback(self, source: _Source, body: str) -> bool:
        """Return True for the lines of the first tracebacks, which are shown whole: parts of one explain nothing."""
        if body.startswith(_TRACEBACK):
            source.in_traceback = self._tracebacks < MAX_WHOLE_TRACEBACKS
            self._tracebacks += 1
            return source.in_traceback
        inside, source.in_traceback = source.in_traceback, source.in_traceback and body[0].isspace()
        return inside

    def _is_new(self, text: str) -> bool:
        now, key = self._clock(), hash(text)
        before = self._shown.get(key)
        if before and now - before.at < WINDOW_SECONDS:
            before.repeats += 1
            before.text = text.strip()[:MAX_QUOTED_LENGTH]
            self._counts[REPEATS] += 1
            return False
        if before and before.repeats:
            self._repeats[key] = before.repeats
            self._counts[REPEATS] -= before.repeats
        self._shown[key] = _Shown(now)
        self._shown.move_to_end(key)
        if len(self._shown) > MAX_KEYS:
            self._shown.popitem(last=False)
        return True


def _is_fragment(body: str) -> bool:
    """Return True for a piece of a line of a printed structure: a literal, a beginning of a mapping, or punctuation."""
    rest = body.strip(" \t:,]})")
    return not rest or _LITERAL.fullmatch(rest) is not None or rest.startswith(("{'", "['"))


def level_of(line: str) -> int:
    """Return the level that a line names (``logging.WARNING``, ``logging.ERROR``), else ``logging.INFO``."""
    found = _LEVEL.search(_split(line)[1][:MAX_LEVEL_PREFIX])
    if not found:
        return logging.INFO
    if found["error"] or found["python_error"]:
        return logging.ERROR
    return logging.WARNING if found["glog"] in (None, "W") else logging.ERROR


def _split(line: str) -> tuple[str, str]:
    """Return the prefix that names a line's process, if any, and the rest, without colors and Ray's counts."""
    plain = _RAY_REPEATS.sub("", _COLOR.sub("", line))
    found = _SOURCE.match(plain)
    end = found.end() if found else 0
    return plain[:end], plain[end:]


def _key(body: str) -> str:
    for pattern, replacement in _VARYING:
        body = pattern.sub(replacement, body)
    return body


def _bar(body: str) -> tuple[str, bool] | None:
    """Return what a progress bar is about, and True at its end; None for any other line."""
    if not (times := _BAR_TIMES.search(body, max(0, len(body) - MAX_BAR_LENGTH))):
        return None
    start = max(0, times.start() - MAX_BAR_LENGTH)
    if not (count := _BAR_COUNT.search(body, start, times.start())):
        return None
    return body[: count.start()], count["percent"] == "100"


def _complete(what: str) -> str:
    return f"{what} 100%"


def _entry(entries: dict[str, _T], key: str, default: _T) -> _T:
    """Return an entry, made if there is none; of too many, all are forgotten: an output may name any number of them."""
    if len(entries) >= MAX_KEYS and key not in entries:
        entries.clear()
    return entries.setdefault(key, default)
