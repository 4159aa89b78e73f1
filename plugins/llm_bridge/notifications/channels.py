"""Channels that deliver alerts: notifiers of Airflow's providers, configured by the names of connections.

A notifier gets the finished text: its ``notify`` is called here directly and not as an Airflow callback, because a
callback would render the text as a template and run whatever a log line has between two braces.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow.sdk.exceptions import AirflowNotFoundException

from llm_bridge.notifications.config import Alerts, Email
from llm_bridge.notifications.message import Message

log = logging.getLogger(__name__)

# For all channels together. A worker that runs longer than [core] task_success_overtime (20 s) after its task's end is
# killed.
SEND_TIMEOUT_SECONDS = 12.0
# For one request, where the provider has a parameter for it; a mail's is "timeout" in the connection's extra.
REQUEST_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Channel:
    """One way to deliver alerts.

    Attributes:
        name: Its key in ``include/alerts.yaml``.
        conn_id: The Airflow connection that it uses.
        send: Delivers a message or raises; blocks.
    """

    name: str
    conn_id: str
    send: Callable[[Message], None]


class NotDelivered(Exception):
    """A notifier says that its message did not go out; the text may be shown."""


def channels(alerts: Alerts) -> list[Channel]:
    """Return the configured channels. A provider is imported only when its channel sends."""
    found = []
    if email := alerts.email:
        found.append(Channel("email", email.conn_id, lambda message: _mail(message, email)))
    if slack := alerts.slack:
        found.append(Channel("slack", slack.conn_id, lambda message: _slack(message, slack.conn_id)))
    if http := alerts.http:
        found.append(
            Channel("http", http.conn_id, lambda message: _http(message, http.conn_id, http.endpoint))
        )
    if apprise := alerts.apprise:
        found.append(
            Channel(
                "apprise", apprise.conn_id, lambda message: _apprise(message, apprise.conn_id, apprise.tag)
            )
        )
    return found


def deliver(
    message: Message, alerts: Alerts, timeout: float = SEND_TIMEOUT_SECONDS
) -> dict[Channel, str | None]:
    """Send ``message`` on all channels at once, and return why each one failed; None for those that did not.

    Blocks, and never raises. Arguments as for :func:`send_alert`.
    """
    # Threads of their own, which do not keep a process from ending: a mail server that does not answer must not hold a
    # worker. The notifiers' asynchronous methods would need no thread, but Apprise's reads secrets from Airflow in a
    # way that fails within a running loop (apprise 2.4.1: AppriseHook.set_config_from_conn).
    sending = {}
    for channel in channels(alerts):
        result: dict[str, Any] = {}
        thread = threading.Thread(target=_try, args=(channel, message, result), daemon=True)
        thread.start()
        sending[channel] = (thread, result)
    until = time.monotonic() + timeout
    failed: dict[Channel, str | None] = {}
    for channel, (thread, result) in sending.items():
        thread.join(max(0.0, until - time.monotonic()))
        late = f"no answer within {timeout:.0f} s" if thread.is_alive() else None
        failed[channel] = result.get("error") or late
    return failed


def send_alert(message: Message, alerts: Alerts, timeout: float = SEND_TIMEOUT_SECONDS) -> list[str]:
    """Send ``message`` on all channels at once; log a warning for each channel that fails, and never raise.

    Blocks, so in a triggerer: ``await asyncio.to_thread(send_alert, ...)``.

    Args:
        message: The alert.
        alerts: Names the channels.
        timeout: Seconds to wait for all channels together. A slower channel may still deliver.

    Returns:
        Names of the channels that delivered the message in time.
    """
    sent = []
    for channel, why in deliver(message, alerts, timeout).items():
        if why is None:
            sent.append(channel.name)
            continue
        log.warning(
            "failed to send alert %r by %s (the run is not affected): %s. Check the Airflow connection %r and '%s' in "
            "include/alerts.yaml",
            message.title, channel.name, why, channel.conn_id, channel.name,
        )  # fmt: skip
    if sent:
        log.info("sent alert by %s: %s", ", ".join(sent), message.title)
    return sent


def _try(channel: Channel, message: Message, result: dict[str, Any]) -> None:
    # BaseException too: Airflow's SDK raises one when its supervisor cannot be called at the moment.
    try:
        channel.send(message)
    except BaseException as error:
        result["error"] = _failure(error, channel.conn_id)


def _failure(error: BaseException, conn_id: str) -> str:
    """Name the failure without the exception's own text, which may contain a header or a URL, token included."""
    if isinstance(error, NotDelivered):
        return str(error)
    if isinstance(error, AirflowNotFoundException):
        return f"Airflow has no connection {conn_id!r}"
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package of {error.name} is not installed where this runs"
    name = type(error).__name__
    cause: BaseException | None = error
    while cause:
        response = getattr(cause, "response", None)
        code = getattr(response, "status_code", None) or getattr(cause, "smtp_code", None)
        if detail := code or (cause.strerror if isinstance(cause, OSError) else None):
            return f"{name} ({detail})"
        cause = cause.__cause__ or cause.__context__
    return name


def _without_urls(text: str) -> str:
    """Replace everything that looks like a URL or a path."""
    return " ".join("…" if "/" in word else word for word in text.split())


def _notify(notifier: Any) -> None:
    notifier.notify({})


def _mail(message: Message, email: Email) -> None:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    _notify(
        SmtpNotifier(
            smtp_conn_id=email.conn_id,
            from_email=email.sender,
            to=email.to,
            subject=message.subject,
            html_content=message.html,
        )
    )


def _slack(message: Message, conn_id: str) -> None:
    from airflow.providers.slack.notifications.slack_webhook import SlackWebhookNotifier

    _notify(
        SlackWebhookNotifier(
            slack_webhook_conn_id=conn_id,
            text=message.mrkdwn,
            timeout=REQUEST_TIMEOUT_SECONDS,
            unfurl_links=False,
        )
    )


def _http(message: Message, conn_id: str, endpoint: str) -> None:
    from airflow.providers.http.notifications.http import HttpNotifier

    _notify(
        HttpNotifier(
            http_conn_id=conn_id,
            endpoint=endpoint,
            json=message.payload,
            extra_options={"timeout": REQUEST_TIMEOUT_SECONDS},
        )
    )


def _apprise(message: Message, conn_id: str, tag: str) -> None:
    import apprise
    from airflow.providers.apprise.notifications.apprise import AppriseNotifier

    good = message.occasion in ("success", "recovery", "test")
    notifier = AppriseNotifier(
        apprise_conn_id=conn_id,
        title=message.subject,
        body=message.text,
        notify_type=apprise.NotifyType.SUCCESS if good else apprise.NotifyType.WARNING,
        tag=tag,
    )
    # The hook drops Apprise's return value: what Apprise logs is the only sign that a message was not delivered.
    log_capture: Any = apprise.LogCapture
    with log_capture(level=logging.WARNING) as captured:
        _notify(notifier)
        if problems := captured.getvalue().strip():
            raise NotDelivered(_without_urls(problems.splitlines()[-1])[:400])
