"""Form and size of an alert."""

from __future__ import annotations

import pytest

from llm_bridge.notifications.message import (
    MAX_FACT_LENGTH,
    MAX_LINES,
    MAX_TITLE_LENGTH,
    Message,
    duration,
    page_url,
)


def test_a_message_is_cut_to_sizes_that_every_channel_accepts() -> None:
    lines = [f"line {number}" for number in range(50)]
    message = Message.build("failure", "x" * 1000, [("Evidence", "y" * 5000)], lines=lines)
    assert len(message.title) == MAX_TITLE_LENGTH and message.title.endswith(" …")
    assert len(dict(message.facts)["Evidence"]) == MAX_FACT_LENGTH
    assert len(message.lines) == MAX_LINES and message.lines[-1] == "line 49"


def test_empty_facts_and_links_are_left_out() -> None:
    message = Message.build(
        "failure",
        "x",
        [("Node", ""), ("Try", None), ("Class", "hang")],
        links=[("Log", ""), ("Run", "http://x")],
    )
    assert message.facts == (("Class", "hang"),) and message.links == (("Run", "http://x"),)


def test_control_characters_are_replaced_and_the_title_is_one_line() -> None:
    message = Message.build("failure", "a\nb\x00c", [("Evidence", "one\ntwo\x1b")], lines=["\x1b[31mred"])
    assert message.title == "a b c"
    assert message.facts == (("Evidence", "one\ntwo "),) and message.lines == (" [31mred",)


def test_slacks_markup_is_escaped_in_title_and_text() -> None:
    message = Message.build("failure", "2 * 3", [("Evidence", "<!channel> & co")])
    assert message.mrkdwn.startswith("*[llm-bridge] 2 ∗ 3*\n")
    assert "&lt;!channel&gt; &amp; co" in message.mrkdwn


def test_a_page_has_the_address_of_airflows_task_instances() -> None:
    assert page_url("d", "r+1") == "https://airflow.example.org/dags/d/runs/r%2B1"
    assert page_url("d", "r", "t", 3, 2) == (
        "https://airflow.example.org/dags/d/runs/r/tasks/t/mapped/3?try_number=2"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(59, "59 s"), (90, "2 min"), (9000, "2 h 30 min"), (90_000, "1 d 1 h")]
)
def test_a_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
