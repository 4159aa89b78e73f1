"""Who is told when a task fails: notifiers of Airflow's providers, set up in ``include/alerts.yaml``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from pydantic import Field

from llm_bridge.config.load import check_model, include_dir
from llm_bridge.config.values import Strict, Text

SUBJECT = "[llm-bridge] {{ ti.dag_id }}: {{ ti.task_id }} failed"
BODY = """\
Task {{ ti.task_id }} of {{ ti.dag_id }}, run {{ run_id }}, failed at try {{ ti.try_number }}.

{{ exception | string | truncate(4000) }}

Log: {{ ti.log_url }}
"""


class Email(Strict):
    """An SMTP connection, and to whom."""

    conn_id: Text
    to: list[Text] = Field(min_length=1)
    sender: Text


class Http(Strict):
    """An HTTP connection that gets a POST with JSON: a chat's webhook, a pager."""

    conn_id: Text
    endpoint: Text = "/"


class Alerts(Strict):
    """``include/alerts.yaml``; empty means silence."""

    email: Email | None = None
    http: Http | None = None


def load_alerts() -> Alerts:
    """Read the file; a missing one means silence.

    :raises ConfigError: a wrong key or value.
    """
    path = include_dir() / "alerts.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return check_model(Alerts, values or {}, "include/alerts.yaml")


def on_failure() -> list[Callable[..., Any]]:
    """Callbacks for a task's ``on_failure_callback``; empty when nothing is set up."""
    alerts = load_alerts()
    callbacks: list[Callable[..., Any]] = []
    if alerts.email:
        from airflow.providers.smtp.notifications.smtp import SmtpNotifier

        callbacks.append(
            SmtpNotifier(
                smtp_conn_id=alerts.email.conn_id,
                from_email=alerts.email.sender,
                to=alerts.email.to,
                subject=SUBJECT,
                html_content=f"<pre>{BODY.replace('| truncate(4000)', '| truncate(4000) | e')}</pre>",
            )
        )
    if alerts.http:
        from airflow.providers.http.notifications.http import HttpNotifier

        callbacks.append(
            HttpNotifier(
                http_conn_id=alerts.http.conn_id,
                endpoint=alerts.http.endpoint,
                json={"title": SUBJECT, "text": BODY},
            )
        )
    return callbacks
