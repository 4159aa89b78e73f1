"""Configuration of alerts: ``include/alerts.yaml``."""

from __future__ import annotations

from typing import Literal

import yaml
from pydantic import Field

from llm_bridge.config.include import include_dir
from llm_bridge.config.loader import check_model
from llm_bridge.config.types import FrozenModel, Hours, Text
from llm_bridge.exceptions import ConfigError


class Email(FrozenModel):
    """An SMTP connection, the recipients and the sender."""

    conn_id: Text
    to: list[Text] = Field(min_length=1)
    sender: Text


class Slack(FrozenModel):
    """A connection of type "Slack Incoming Webhook", whose password is the webhook's token."""

    conn_id: Text


class Http(FrozenModel):
    """An HTTP connection that receives a POST with JSON: a chat's webhook, a pager."""

    conn_id: Text
    endpoint: Text = "/"


class Apprise(FrozenModel):
    """A connection of type "Apprise", which reaches any of some hundred services."""

    conn_id: Text
    tag: Text = "all"


class Alerts(FrozenModel):
    """Content of ``include/alerts.yaml``; without a channel no alert is sent."""

    email: Email | None = None
    slack: Slack | None = None
    http: Http | None = None
    apprise: Apprise | None = None
    retries: bool = Field(default=False, description="also notify of a failure that Airflow retries")
    recoveries: bool = Field(default=True, description="notify of a success after a failure")
    successes: Literal["scheduled", "all", "none"] = "scheduled"
    late_after_hours: dict[Text, Hours] = Field(
        default={}, description="DAG -> hours that a run may take, counted from when it was queued"
    )
    queued_after_hours: Hours | None = Field(
        default=12, description="hours that a job may wait in Slurm's queue"
    )

    @property
    def silent(self) -> bool:
        """Return whether no channel is configured."""
        return not (self.email or self.slack or self.http or self.apprise)


def load_alerts() -> Alerts:
    """Read ``include/alerts.yaml``; without the file no alert is sent.

    Returns:
        The settings, defaults included.

    Raises:
        ConfigError: Not YAML, or a wrong key or value.
    """
    path = include_dir() / "alerts.yaml"
    source = f"include/{path.name}"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from None
    return check_model(Alerts, values or {}, source)
