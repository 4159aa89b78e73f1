"""Values of an Airflow connection to a login node, as a process without Airflow can use them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LoginSettings:
    """Values of an Airflow connection of type SSH.

    Attributes:
        conn_id: Its id.
        host: Name or address of the login node.
        port: Port of sshd; None for 22.
        login: User on the cluster.
        password: Password; None without one.
        extra_dejson: The extra, with the name that it has in Airflow.
    """

    conn_id: str
    host: str | None
    port: int | None
    login: str | None
    password: str | None = field(repr=False)
    extra_dejson: dict[str, Any] = field(repr=False)
