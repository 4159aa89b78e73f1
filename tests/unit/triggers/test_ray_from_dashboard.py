"""Lines of a Ray job's log stream."""

from __future__ import annotations

from llm_bridge.monitoring.log_relay import LAST_LINES
from llm_bridge.triggers.ray_from_dashboard import LineBuffer


def test_a_line_is_complete_at_its_line_end_or_at_the_end_of_the_log() -> None:
    buffer = LineBuffer()
    assert buffer.add("one\ntw") == ["one"]
    assert buffer.add("o\r\n\n10%\r20%") == ["two", "10%"]
    assert buffer.rest() == ["20%"] and buffer.rest() == []
    assert buffer.last == ["one", "two", "10%", "20%"]


def test_only_the_last_lines_are_kept() -> None:
    buffer = LineBuffer()
    for number in range(3 * LAST_LINES):
        buffer.add(f"line {number}\n")
    assert len(buffer.last) == LAST_LINES and buffer.last[-1] == f"line {3 * LAST_LINES - 1}"
