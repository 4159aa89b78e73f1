"""Read Airflow connections. Below the triggers only this module and ``provider_login`` use Airflow."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from llm_bridge.exceptions import ConfigError, NoConnection
from llm_bridge.remote.login_settings import LoginSettings


def connection(conn_id: str, kind: str = "") -> Any:
    """Return an Airflow connection.

    Args:
        conn_id: Its id.
        kind: What to create if there is none.

    Raises:
        ConfigError: There is no connection with that id.
    """
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        create = ", ".join(filter(None, ("Admin > Connections", kind)))
        raise ConfigError(
            f"Airflow has no connection {conn_id!r}: create it ({create}), or correct the name where it is set "
            "(cluster file or DAG)"
        ) from None


async def login_settings(conn_id: str) -> LoginSettings:
    """Return the values of the Airflow connection to a login node.

    Raises:
        NoConnection: There is no connection with that id.
    """
    # Imported here because a DAG file, which never connects, reads this module, too.
    from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson

    try:
        try:
            found = await get_async_connection(conn_id)
        except AirflowNotFoundException:
            # `airflow tasks test` finds none of the database asynchronously: Airflow 3.3.2's InProcessSupervisorComms
            # has no `asend`.
            found = await asyncio.to_thread(BaseHook.get_connection, conn_id)
    except AirflowNotFoundException:
        raise NoConnection(
            f"Airflow has no connection {conn_id!r}: create it (Admin > Connections, type SSH) or set "
            "ssh_conn_id in the cluster file to one that exists"
        ) from None
    extra = dict(await get_async_extra_dejson(found))
    return LoginSettings(conn_id, found.host, found.port, found.login, found.password, extra)


def secret(conn_id: str) -> str:
    """Return the token or key that a connection holds as its password, without blanks and line ends around it.

    It is checked here because an HTTP library shows a header value that it refuses in its own error message.

    Raises:
        ConfigError: There is no such connection, it has no password, or none that can be a token; it is not shown.
    """
    password = connection(conn_id, "type Generic, with the token as its password").password or ""
    value: str = password.strip()
    if not value:
        raise ConfigError(
            f"the Airflow connection {conn_id!r} has no password: store the token there (Admin > Connections), or "
            "correct the name where it is set (cluster file or DAG)"
        )
    if value != password:
        mask_secret(value)  # Airflow masks the password as it is in the connection
    if not re.fullmatch("[!-~]+", value):
        wrong = "a blank or a line end" if re.search(r"\s", value) else "a character outside printable ASCII"
        raise ConfigError(
            f"the password of Airflow connection {conn_id!r} is no token or key: there is {wrong} within it. Copy the "
            "token again, alone and whole, into the connection (Admin > Connections)"
        )
    return value
