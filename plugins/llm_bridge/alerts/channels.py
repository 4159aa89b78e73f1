"""The ways on which alerts travel: notifiers of Airflow's providers, set up by the names of connections.

A notifier gets the finished text: it is called by ``notify`` itself and not as a callback, which would take the text
for a template and run whatever a log line holds between two braces.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_bridge.alerts.config import Alerts
from llm_bridge.alerts.message import Message

log = logging.getLogger(__name__)

# A worker is killed when it goes on so long after its task's end ([core] task_success_overtime): 20 s.
PATIENCE_SECONDS = 12.0
# Of one request, where the provider lets us say; a mail's is "timeout" in the connection's extra.
REQUEST_SECONDS = 10


@dataclass(frozen=True)
class Channel:
    """One way.

    :param name: its key in ``include/alerts.yaml``.
    :param send: delivers a message or raises; blocks.
    """

    name: str
    conn_id: str
    send: Callable[[Message], None]


def channels(alerts: Alerts) -> list[Channel]:
    """Those that are set up. A provider is imported when its channel sends."""
    found = []
    if email := alerts.email:
        found.append(Channel("email", email.conn_id, lambda message: _mail(message, alerts)))
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


def tell(message: Message, alerts: Alerts, patience: float = PATIENCE_SECONDS) -> list[str]:
    """Send ``message`` on all channels at once; a channel that is broken is said in the log, and never raises.

    Blocks, so in a triggerer: ``await asyncio.to_thread(tell, ...)``.

    :param patience: seconds to wait for all of them together. A channel that is slower may still deliver.
    :returns: names of the channels that took it.
    """
    # Threads of their own, which a process does not wait for at its end: a mail server that does not answer must not
    # hold a worker. The notifiers' asynchronous side would need no thread, but Apprise's asks Airflow for secrets in a
    # way that fails within a loop (apprise 2.4.1: AppriseHook.set_config_from_conn).
    going = {}
    for channel in channels(alerts):
        result: dict[str, Any] = {}
        thread = threading.Thread(target=_try, args=(channel, message, result), daemon=True)
        thread.start()
        going[channel] = (thread, result)
    until, took = time.monotonic() + patience, []
    for channel, (thread, result) in going.items():
        thread.join(max(0.0, until - time.monotonic()))
        if "error" not in result and not thread.is_alive():
            took.append(channel.name)
            continue
        why = result.get("error") or f"no answer within {patience:.0f} s"
        log.warning(
            "the alert %r did not go out by %s (the run is not affected): %s. Check the Airflow connection %r and "
            "'%s' in include/alerts.yaml",
            message.title, channel.name, why, channel.conn_id, channel.name,
        )  # fmt: skip
    if took:
        log.info("told by %s: %s", ", ".join(took), message.title)
    return took


def _try(channel: Channel, message: Message, result: dict[str, Any]) -> None:
    # Also BaseException: the SDK has one for calls to its supervisor that cannot be made just now.
    try:
        channel.send(message)
    except BaseException as error:
        # Not the whole text: an answer may be a page, and the address may hold a webhook's token.
        result["error"] = f"{type(error).__name__}: {_without_addresses(str(error))[:400]}"


def _without_addresses(text: str) -> str:
    """The words without those that look like an address or a path."""
    return " ".join("…" if "/" in word else word for word in text.split())


def _mail(message: Message, alerts: Alerts) -> None:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    assert alerts.email
    SmtpNotifier(
        smtp_conn_id=alerts.email.conn_id,
        from_email=alerts.email.sender,
        to=alerts.email.to,
        subject=message.subject,
        html_content=message.html,
    ).notify({})


def _slack(message: Message, conn_id: str) -> None:
    from airflow.providers.slack.notifications.slack_webhook import SlackWebhookNotifier

    SlackWebhookNotifier(
        slack_webhook_conn_id=conn_id, text=message.mrkdwn, timeout=REQUEST_SECONDS, unfurl_links=False
    ).notify({})


def _http(message: Message, conn_id: str, endpoint: str) -> None:
    from airflow.providers.http.notifications.http import HttpNotifier

    HttpNotifier(
        http_conn_id=conn_id,
        endpoint=endpoint,
        json=message.payload,
        extra_options={"timeout": REQUEST_SECONDS},
    ).notify({})


def _apprise(message: Message, conn_id: str, tag: str) -> None:
    import apprise
    from airflow.providers.apprise.notifications.apprise import AppriseNotifier

    good = message.occasion in ("success", "recovery")
    notifier = AppriseNotifier(
        apprise_conn_id=conn_id,
        title=message.subject,
        body=message.text,
        notify_type=apprise.NotifyType.SUCCESS if good else apprise.NotifyType.WARNING,
        tag=tag,
    )
    # The hook drops Apprise's answer, so a message that went nowhere is known by what Apprise logs only.
    with apprise.LogCapture(level=logging.WARNING) as said:
        notifier.notify({})
        if problems := said.getvalue().strip():
            raise RuntimeError(problems.splitlines()[-1])
