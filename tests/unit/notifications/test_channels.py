"""Alerts through Airflow's real notifiers and connections, to a real mail server and a real web server."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_bridge.notifications.channels import send_alert
from llm_bridge.notifications.config import load_alerts
from llm_bridge.notifications.message import Message

MESSAGE = Message.build(
    "failure",
    "nightly: sft.train failed: out of memory & <b>",
    [("Evidence", "CUDA out of memory: {{ 7 * 7 }} <script>"), ("Node", "gpu95"), ("Advice", None)],
    lines=["step:3", "\x1b[31mTraceback <most recent call last>\x1b[0m"],
    links=[("Log", "https://airflow.example.org/dags/x"), ("On the cluster", "/shared/w/attempt-1")],
)
EMAIL = {"conn_id": "mail", "sender": "llm-bridge@example.org", "to": ["a@example.org", "b@example.org"]}


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the warnings about alerts that were not delivered."""
    caplog.set_level(logging.INFO, logger="llm_bridge.notifications.channels")
    return lambda: [r.getMessage() for r in caplog.records if "failed to send alert" in r.getMessage()]


def test_all_channels_carry_the_same_message(
    include: Any, mails: Any, posts: Any, warned: Callable[[], list[str]]
) -> None:
    include(
        email=EMAIL,
        slack={"conn_id": "slack"},
        http={"conn_id": "hook", "endpoint": "/pager"},
        apprise={"conn_id": "apprise", "tag": "ops"},
    )
    assert send_alert(MESSAGE, load_alerts()) == ["email", "slack", "http", "apprise"]
    assert warned() == []
    bodies = dict(posts)
    assert set(bodies) == {"/services/T0/B0/secret-token", "/pager", "/apprise"}
    said = [mails[0].get_body().get_content(), *map(str, bodies.values())]
    for text in said:
        assert "gpu95" in text and "step:3" in text and "/shared/w/attempt-1" in text
        assert "{{ 7 * 7 }}" in text, "a log line was rendered as a template"
        assert "\x1b" not in text and "Advice" not in text
    assert bodies["/pager"]["facts"]["Node"] == "gpu95" and bodies["/pager"]["occasion"] == "failure"


def test_log_lines_are_escaped_in_a_mail(include: Any, mails: Any) -> None:
    include(email=EMAIL)
    assert send_alert(MESSAGE, load_alerts()) == ["email"]
    (mail,) = mails
    assert mail["Subject"] == "[llm-bridge] nightly: sft.train failed: out of memory & <b>"
    assert mail["To"] == "a@example.org, b@example.org" and mail["From"] == "llm-bridge@example.org"
    html = mail.get_body().get_content()
    assert "&lt;script&gt;" in html and "<script>" not in html
    assert '<a href="https://airflow.example.org/dags/x">' in html


def test_log_lines_are_no_markup_in_slack(include: Any, posts: Any) -> None:
    include(slack={"conn_id": "slack"})
    send_alert(Message.build("failure", "x", [("Evidence", "<!channel> & co")]), load_alerts())
    assert "&lt;!channel&gt; &amp; co" in posts[0][1]["text"]


def test_a_channel_whose_port_is_closed_causes_one_warning_and_the_others_deliver(
    include: Any,
    mails: Any,
    posts: Any,
    warned: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as closed:
        closed.bind(
            ("127.0.0.1", 0)
        )  # bound without listening: connections are refused, and no other process gets the port
        monkeypatch.setenv("AIRFLOW_CONN_CLOSED", f"http://127.0.0.1:{closed.getsockname()[1]}")
        include(email=EMAIL, http={"conn_id": "closed", "endpoint": "/a-secret-path"})
        assert send_alert(MESSAGE, load_alerts()) == ["email"]
    (said,) = warned()
    assert "by http" in said and "connection 'closed'" in said and "refused" in said
    assert "a-secret-path" not in said


def test_an_unreachable_mail_server_causes_a_warning_with_the_connection_to_check(
    include: Any, warned: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AIRFLOW_CONN_MAIL", f"smtp://127.0.0.1:{closed.getsockname()[1]}")
        include(email=EMAIL)
        assert send_alert(MESSAGE, load_alerts()) == []
    (said,) = warned()
    assert "by email" in said and "connection 'mail'" in said


@pytest.mark.parametrize("channel", ["http", "slack", "apprise"])
def test_a_server_that_answers_with_an_error_causes_a_warning(
    include: Any, posts: Any, warned: Callable[[], list[str]], channel: str
) -> None:
    posts.status = 500
    include(**{channel: {"conn_id": {"http": "hook"}.get(channel, channel)}})
    assert send_alert(MESSAGE, load_alerts()) == []
    (said,) = warned()
    assert f"by {channel}" in said and "secret-token" not in said


@pytest.mark.parametrize("token", ["abcd1234\n", "abcd 1234\r\nX: y", "abcdü1234"])
def test_a_refused_header_is_not_logged_with_its_token(
    include: Any, posts: Any, warned: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    hook = {"conn_type": "http", "host": f"http://127.0.0.1:{posts.port}"}
    extra = {"Authorization": f"Bearer {token}"}
    monkeypatch.setenv("AIRFLOW_CONN_HOOK", json.dumps({**hook, "extra": extra}))
    include(http={"conn_id": "hook"})
    send_alert(MESSAGE, load_alerts())
    assert not any("abcd" in said or "1234" in said for said in warned())


def test_a_connection_that_does_not_exist_is_named(
    include: Any, posts: Any, warned: Callable[[], list[str]]
) -> None:
    include(slack={"conn_id": "forgotten"})
    assert send_alert(MESSAGE, load_alerts()) == []
    assert "by slack (the run is not affected): Airflow has no connection 'forgotten'" in warned()[0]


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Yield the port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_never_answers_delays_nothing_beyond_the_timeout(
    include: Any,
    silent_server: int,
    posts: Any,
    warned: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MAIL", f"smtp://127.0.0.1:{silent_server}")
    include(email=EMAIL, http={"conn_id": "hook"})
    began = time.monotonic()
    assert send_alert(MESSAGE, load_alerts(), timeout=2) == ["http"]
    assert time.monotonic() - began < 30, "SMTP alone waits a minute"
    assert "no answer within 2 s" in warned()[0]
