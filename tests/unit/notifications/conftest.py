"""A mail server and a web server (testing/sinks.py), and Airflow connections to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from testing.sinks import Mails, Posts, mail_server, web_server


@pytest.fixture(autouse=True)
def include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that writes ``include/alerts.yaml``."""
    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.org/")
    return lambda **values: (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(values))  # type: ignore


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mails]:
    """Yield the received mails of a mail server, which connection ``mail`` leads to."""
    with mail_server() as got:
        monkeypatch.setenv("AIRFLOW_CONN_MAIL", got.connection)
        yield got


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Posts]:
    """Yield the received requests of a web server, which ``hook``, ``slack`` and ``apprise`` lead to."""
    with web_server() as got:
        at = f"127.0.0.1:{got.port}"
        slack = {
            "conn_type": "slackwebhook",
            "host": f"http://{at}/services",
            "password": "T0/B0/secret-token",
        }
        apprise = {
            "conn_type": "apprise",
            "extra": {"config": {"path": f"json://{at}/apprise", "tag": "ops"}},
        }
        monkeypatch.setenv("AIRFLOW_CONN_HOOK", f"http://{at}")
        monkeypatch.setenv("AIRFLOW_CONN_SLACK", json.dumps(slack))
        monkeypatch.setenv("AIRFLOW_CONN_APPRISE", json.dumps(apprise))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield got
