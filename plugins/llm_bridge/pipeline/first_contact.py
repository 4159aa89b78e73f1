"""Remember which login nodes have answered: a first contact that fails is a wrong setting, a later one an outage.

The memory is one Airflow variable for each cluster file. It holds the address, so that a changed connection counts as
new.
"""

from __future__ import annotations

import logging

from airflow.sdk import Variable

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import ConfigError
from llm_bridge.remote import connections

log = logging.getLogger(__name__)


def is_first(cluster: Cluster) -> bool:
    """Return True if the login node has never answered; False also if that cannot be determined."""
    if cluster.ssh_conn_id is None:
        return False
    try:
        return bool(Variable.get(_key(cluster), default=None) != address(cluster))
    except Exception as error:  # the API or a secrets backend does not answer
        log.warning("cannot read the Airflow variable %s: %r", _key(cluster), error)
        return False


def record(cluster: Cluster) -> None:
    """Remember that the login node has answered."""
    if not is_first(cluster):
        return
    try:
        Variable.set(_key(cluster), address(cluster), description="llm-bridge: this login node has answered")
    except Exception as error:  # without the variable the next outage may be reported as a first contact
        log.warning("cannot write the Airflow variable %s: %r", _key(cluster), error)


def describe(cluster: Cluster, error: Exception) -> str:
    """Return the message for a login node that has never answered.

    Args:
        cluster: Its cluster.
        error: Error of the last try.
    """
    return (
        f"the login node of cluster {cluster.name!r} has never answered at {address(cluster)}: {error}. Check host, "
        f"port and login of the Airflow connection {cluster.ssh_conn_id!r} (Admin > Connections), whose name is "
        f"ssh_conn_id in include/clusters/{cluster.name}.yaml, and that Airflow's hosts may connect to that port. "
        "Nothing was submitted. (A login node that has answered before is waited for.)"
    )


def address(cluster: Cluster) -> str:
    """Return user, host and port of the cluster's connection."""
    try:
        connection = connections.connection(cluster.ssh_conn_id or "")
    except ConfigError:
        return ""
    return f"{connection.login or ''}@{connection.host or ''}:{connection.port or 22}"


def _key(cluster: Cluster) -> str:
    return f"llm_bridge.answered.{cluster.name}"
