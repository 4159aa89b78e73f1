"""Who is told of what: ``include/alerts.yaml``."""

from __future__ import annotations

from typing import Literal

import yaml
from pydantic import Field

from llm_bridge.config.errors import ConfigError
from llm_bridge.config.load import check_model, include_dir
from llm_bridge.config.values import Hours, Strict, Text


class Email(Strict):
    """An SMTP connection, and to whom."""

    conn_id: Text
    to: list[Text] = Field(min_length=1)
    sender: Text


class Slack(Strict):
    """A connection of type "Slack Incoming Webhook", whose password is the webhook's token."""

    conn_id: Text


class Http(Strict):
    """An HTTP connection that gets a POST with JSON: a chat's webhook, a pager."""

    conn_id: Text
    endpoint: Text = "/"


class Apprise(Strict):
    """A connection of type "Apprise", which names any of some hundred services."""

    conn_id: Text
    tag: Text = "all"


class Alerts(Strict):
    """``include/alerts.yaml``; without a channel it means silence."""

    email: Email | None = None
    slack: Slack | None = None
    http: Http | None = None
    apprise: Apprise | None = None
    retries: bool = Field(default=False, description="also tell a failure that is tried again")
    recoveries: bool = Field(default=True, description="tell a success after a failure")
    successes: Literal["scheduled", "all", "none"] = "scheduled"
    late_after_hours: dict[Text, Hours] = Field(default={}, description="DAG -> hours in queue and at work")
    queued_after_hours: Hours | None = Field(default=12, description="a job that Slurm has not started")

    @property
    def silent(self) -> bool:
        """Whether nobody is to be told of anything."""
        return not (self.email or self.slack or self.http or self.apprise)


def load_alerts() -> Alerts:
    """Read the file; a missing one means silence.

    :raises ConfigError: not YAML, or a wrong key or value.
    """
    path = include_dir() / "alerts.yaml"
    source = f"include/{path.name}"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from None
    return check_model(Alerts, values or {}, source)
