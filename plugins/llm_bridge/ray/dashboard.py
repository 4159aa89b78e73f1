"""Ray's dashboard for people: an ssh command that works on every site, and a link where the site has a way to it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.sdk import BaseHook, BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

from llm_bridge.config.load import load_cluster

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

# The XCom that the link is kept in.
XCOM_KEY = "ray_dashboard"
# Ray's usual port (docs.ray.io), here of the user's own machine.
LOCAL_PORT = 8265


class RayDashboardLink(BaseOperatorLink):
    """A button on the task's page; without an address where the cluster file has no ``ray.dashboard_url``."""

    name = "Ray dashboard"
    xcom_key = XCOM_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """What :func:`offer` has left of this task's try."""
        return XCom.get_value(ti_key=ti_key, key=XCOM_KEY) or ""


def offer(ti: Any, cluster_name: str | None, dashboard: str | None) -> None:
    """Leave the link to a dashboard for the task's button, if there is one.

    :param cluster_name: of the cluster file; None for a Ray cluster that is not a Slurm job of ours.
    :param dashboard: ``http://IP:PORT`` on the cluster.
    """
    if url := url_for(cluster_name, dashboard):
        ti.xcom_push(key=XCOM_KEY, value=url)


def url_for(cluster_name: str | None, dashboard: str | None) -> str:
    """Where people open a dashboard; empty where only ssh leads to it."""
    if not dashboard or not cluster_name:
        return dashboard or ""
    template = load_cluster(cluster_name).ray.dashboard_url
    where = urlsplit(dashboard)
    return template.format(host=where.hostname, port=where.port) if template else ""


def ssh_command(cluster_name: str, dashboard: str) -> str:
    """What to type on one's own machine to reach a dashboard at ``http://localhost:8265``.

    User, host and port are those of the cluster's Airflow connection. A jump host of Airflow's own
    ``~/.ssh/config`` is not in there.
    """
    forward = f"{LOCAL_PORT}:{urlsplit(dashboard).netloc}"
    conn_id = load_cluster(cluster_name).ssh_conn_id
    if conn_id is None:  # Airflow runs on the login node
        return shlex.join(["ssh", "-N", "-L", forward, "LOGIN_NODE"])
    login = BaseHook.get_connection(conn_id)
    port = ["-p", str(login.port)] if login.port and login.port != 22 else []
    who = f"{login.login}@{login.host}" if login.login else str(login.host)
    return shlex.join(["ssh", "-N", *port, "-L", forward, who])


def tell(cluster_name: str, directory: str, dashboard: str) -> str:
    """The way to a dashboard, for the log; with where its token is, but never the token."""
    return (
        f"Ray's dashboard: `{ssh_command(cluster_name, dashboard)}` on your own machine, then http://localhost:"
        f"{LOCAL_PORT}; it asks for the token: {directory}/ray_token on the cluster, readable by the job's user alone"
    )
