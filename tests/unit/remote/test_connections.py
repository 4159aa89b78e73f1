"""Tokens and keys are checked where a connection is read, and no exception's text shows one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.providers.common.compat import connection as compat
from airflow.sdk.exceptions import AirflowNotFoundException

from llm_bridge.exceptions import ConfigError, NoConnection
from llm_bridge.ray.client import RayTarget, ray_client
from llm_bridge.remote.connections import connection as read_connection
from llm_bridge.remote.connections import login_settings, secret


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Any:
    def hold(password: str | None) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_KEY", json.dumps({"conn_type": "generic", "password": password}))

    return hold


@pytest.mark.parametrize("around", ["{}", "{}\n", " {}\r\n", "\t{} "])
def test_blanks_and_line_ends_around_a_token_are_dropped(connection: Any, around: str) -> None:
    connection(around.format("hf_abc"))
    assert secret("key") == "hf_abc"


@pytest.mark.parametrize(
    ("password", "wrong"),
    [
        ("hf_abc hf_def", "a blank or a line end"),
        ("hf_abc\nhf_def", "a blank or a line end"),
        ("hf_abc\u00a0def", "a blank or a line end"),
        ("\ufeffhf_abc", "outside printable ASCII"),
        ("hf_äbc", "outside printable ASCII"),
        ("hf_abc\x00def", "outside printable ASCII"),
    ],
)
def test_a_password_that_cannot_be_a_token_is_refused_with_the_connections_name_and_not_shown(
    connection: Any, password: str, wrong: str
) -> None:
    connection(password)
    with pytest.raises(ConfigError, match=f"connection 'key' .*{wrong}") as error:
        secret("key")
    assert not any(part in str(error.value) for part in ("hf_", "abc", "bc", "def"))


@pytest.mark.parametrize("password", [None, "", " \n"])
def test_an_empty_password_counts_as_none(connection: Any, password: str | None) -> None:
    connection(password)
    with pytest.raises(ConfigError, match="connection 'key' has no password"):
        secret("key")


async def test_a_connection_of_the_database_is_found_by_a_task_that_airflow_runs_in_process(
    monkeypatch: pytest.MonkeyPatch, connection: Any
) -> None:
    """As in `airflow tasks test`: the asynchronous lookup, replaced here, finds nothing."""

    async def not_found(conn_id: str) -> None:
        raise AirflowNotFoundException(conn_id)

    connection("p")
    monkeypatch.setattr(compat, "get_async_connection", not_found)
    assert (await login_settings("key")).password == "p"
    with pytest.raises(NoConnection, match="Airflow has no connection 'nowhere'"):
        await login_settings("nowhere")


def test_a_connection_that_does_not_exist_is_named() -> None:
    for read in (secret, read_connection):
        with pytest.raises(ConfigError, match="Airflow has no connection 'nowhere'"):
            read("nowhere")


async def test_the_token_of_another_ray_cluster_is_checked_too(connection: Any) -> None:
    connection("abc\ndef")
    with pytest.raises(ConfigError, match="connection 'key'") as error:
        async with ray_client(RayTarget(address="http://127.0.0.1:1", conn_id="key")):
            pass
    assert "abc" not in str(error.value)
