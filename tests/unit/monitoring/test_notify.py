"""Alerts about a job that runs on: once for each attempt."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.exceptions import LoginNodeUnreachable
from llm_bridge.monitoring import notify
from llm_bridge.monitoring.notify import notify_job
from llm_bridge.notifications.config import Alerts
from llm_bridge.notifications.message import Message
from llm_bridge.remote.transport import CommandFailed, Completed
from llm_bridge.slurm.batch_script import AttemptFiles

TI = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1, try_number=2)


class Cluster:
    """Client of a cluster that keeps the files of attempts."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.reachable = True

    async def read(self, path: str) -> str:
        if path not in self.files:
            raise CommandFailed(["cat", path], Completed(1, "", "No such file or directory"))
        return self.files[path]

    async def put_files(self, directory: str, files: AttemptFiles) -> None:
        self.files |= {f"{directory}/{name}": text for name, text in files.texts.items()}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    client = Cluster()

    @asynccontextmanager
    async def open_client(name: str) -> AsyncIterator[Any]:
        if not client.reachable:
            raise LoginNodeUnreachable("no route")
        yield client

    monkeypatch.setattr(notify, "open_client", open_client)
    return client


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    messages: list[Message] = []
    configured = Alerts.model_validate({"http": {"conn_id": "hook"}})
    monkeypatch.setattr(notify, "load_alerts", lambda: configured)
    monkeypatch.setattr(notify, "send_alert", lambda message, *more: messages.append(message))
    return messages


async def send(occasion: Any = "hang", directory: str | None = "/w/a") -> None:
    await notify_job(TI, occasion, "it may hang", [("Class", "hang")], cluster="c", directory=directory)


async def test_an_alert_is_sent_once_for_each_attempt_and_occasion(
    cluster: Cluster, sent: list[Message]
) -> None:
    for directory in ("/w/a", "/w/a", "/w/b"):
        await send(directory=directory)
    await send("queued")
    assert [message.occasion for message in sent] == ["hang", "hang", "queued"]
    assert "at" in json.loads(cluster.files["/w/a/notified-hang.json"])
    assert sent[0].title == "d: t: it may hang" and dict(sent[0].facts)["Try"] == "2"
    assert dict(sent[0].links)["On the cluster"] == "/w/a"


async def test_an_unreachable_login_node_does_not_keep_the_alert_back(
    cluster: Cluster, sent: list[Message]
) -> None:
    cluster.reachable = False
    await send()
    assert len(sent) == 1 and cluster.files == {}


async def test_without_a_channel_no_file_is_written(
    cluster: Cluster, sent: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "load_alerts", Alerts)
    await send()
    assert sent == [] and cluster.files == {}


async def test_an_error_is_logged_and_not_raised(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load_alerts() -> Alerts:
        raise RuntimeError("defect")

    monkeypatch.setattr(notify, "load_alerts", load_alerts)
    await send()
    assert "failed to send alert: it may hang" in caplog.text
