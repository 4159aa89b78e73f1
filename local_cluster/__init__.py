"""A real multi-node Slurm cluster on one Debian machine, for tests and demonstrations. See README.md."""

from local_cluster.checks import preflight
from local_cluster.cluster import LocalCluster
from local_cluster.errors import LocalClusterError
from local_cluster.settings import Settings
from local_cluster.status import ClusterStatus, HostStatus

__all__ = ["ClusterStatus", "HostStatus", "LocalCluster", "LocalClusterError", "Settings", "preflight"]
