"""Checks that this machine can run a local cluster, before anything is changed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from testing.local_cluster.errors import LocalClusterError
from testing.local_cluster.settings import Settings

# Program -> its Debian package.
PROGRAMS = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sinfo": "slurm-wlm",
    "munged": "munge",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
}
ACCOUNTING_PROGRAMS = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
}
# Features that the hosts need: namespaces with a veth pair, a bridge, and a tmpfs.
NAMESPACES = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc"]
PROBES = {
    "namespaces": ["true"],
    "network bridges": ["ip", "link", "add", "probe0", "type", "bridge"],
    "veth pairs": ["ip", "link", "add", "probe0", "type", "veth", "peer", "name", "probe1"],
    "mounts in a namespace": ["mount", "-t", "tmpfs", "tmpfs", "/run"],
}
SEARCH_PATH = os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"])


def preflight(settings: Settings) -> None:
    """Check system, root, programs, folder and kernel features.

    Raises:
        LocalClusterError: A requirement is missing; the message names it and the next action.
    """
    if sys.platform != "linux":
        raise LocalClusterError(
            "the local cluster needs Linux namespaces; on other systems use docker-compose.yaml"
        )
    if os.geteuid() != 0:
        raise LocalClusterError(
            "the local cluster needs root to create namespaces; run it with sudo, or use docker-compose.yaml"
        )
    _check_programs(settings.accounting)
    _check_folder(settings.state_dir)
    for feature, command in PROBES.items():
        done = subprocess.run([*NAMESPACES, *command], capture_output=True, text=True)
        if done.returncode:
            raise LocalClusterError(
                f"this kernel or container does not allow {feature}: `{' '.join([*NAMESPACES, *command])}`"
                f" failed: {done.stderr.strip()}. Start the container with --privileged, or use a virtual"
                " machine."
            )


def _check_programs(accounting: bool) -> None:
    wanted = PROGRAMS | (ACCOUNTING_PROGRAMS if accounting else {})
    missing = {
        program: package for program, package in wanted.items() if not shutil.which(program, path=SEARCH_PATH)
    }
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise LocalClusterError(
            f"missing: {', '.join(missing)}. Install with:"
            f" apt-get install -y --no-install-recommends {packages}"
        )
    for user in ("munge", "slurm", *(["mysql"] if accounting else [])):
        try:
            pwd.getpwnam(user)
        except KeyError:
            raise LocalClusterError(
                f"the machine has no system user {user!r}, which Debian's package makes at install; install"
                " the packages with apt-get (see local_cluster/README.md)"
            ) from None


def _check_folder(state_dir: Path) -> None:
    """Jobs run as plain user svc, who has to get into the shared file system under the state directory."""
    for folder in state_dir.parents:
        if folder.exists() and not folder.stat().st_mode & 0o001:
            raise LocalClusterError(
                f"plain users cannot enter {folder}, so jobs could not reach {state_dir}: set"
                " LLM_BRIDGE_HOME to a folder that they can, e.g. /var/tmp/llm-bridge"
            )
