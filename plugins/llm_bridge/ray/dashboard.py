"""Show users how to open a Ray dashboard: an ssh command that works at every site, and a link where a site has one."""

from __future__ import annotations

import shlex
from urllib.parse import urlsplit

from llm_bridge.config.loader import load_cluster
from llm_bridge.remote import attempt_dir, connections

# Ray's default port (docs.ray.io), used here on the user's own machine.
LOCAL_PORT = 8265


def url_for(cluster_name: str | None, dashboard: str | None) -> str:
    """Return the URL at which a browser opens a dashboard; empty if it needs an ssh tunnel."""
    if not dashboard or not cluster_name:
        return dashboard or ""
    template = load_cluster(cluster_name).ray.dashboard_url
    where = urlsplit(dashboard)
    return template.format(host=where.hostname, port=where.port) if template else ""


def ssh_command(cluster_name: str, dashboard: str) -> str:
    """Return the command that forwards a dashboard to ``http://localhost:8265`` of the user's own machine.

    User, host and port are those of the cluster's Airflow connection. A jump host in Airflow's own ``~/.ssh/config``
    is not included.
    """
    forward = f"{LOCAL_PORT}:{urlsplit(dashboard).netloc}"
    conn_id = load_cluster(cluster_name).ssh_conn_id
    if conn_id is None:  # Airflow runs on the login node
        return shlex.join(["ssh", "-N", "-L", forward, "LOGIN_NODE"])
    login = connections.connection(conn_id)
    port = ["-p", str(login.port)] if login.port and login.port != 22 else []
    destination = f"{login.login}@{login.host}" if login.login else str(login.host)
    return shlex.join(["ssh", "-N", *port, "-L", forward, destination])


def describe(cluster_name: str, directory: str, dashboard: str) -> str:
    """Return a log line on how to open a dashboard; it names the token's file, never the token."""
    return (
        f"Ray dashboard: run `{ssh_command(cluster_name, dashboard)}` on your own machine, then open http://localhost:"
        f"{LOCAL_PORT}; it asks for a token, which is in {directory}/{attempt_dir.RAY_TOKEN} on the cluster (readable "
        "only by the job's user)"
    )
