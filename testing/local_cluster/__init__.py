"""Real multi-node Slurm cluster on one Debian machine, for tests and demonstrations. See README.md."""

from testing.local_cluster.checks import preflight
from testing.local_cluster.cluster import LocalCluster
from testing.local_cluster.errors import LocalClusterError
from testing.local_cluster.settings import Settings
from testing.local_cluster.status import ClusterStatus, HostStatus

__all__ = ["ClusterStatus", "HostStatus", "LocalCluster", "LocalClusterError", "Settings", "preflight"]
