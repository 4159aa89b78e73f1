"""Make this container a host of the demo's cluster: configuration, accounts, keys. Needs root; can be repeated.

    prepare.py controller | login | node

Settings come from the environment (NODES, GPUS, CLUSTER_NET), secrets from /run/secrets.
"""

from __future__ import annotations

import base64
import os
import shutil
import sys
from pathlib import Path

from testing.local_cluster import accounts
from testing.local_cluster.render import NO_NAME_SERVER, PACKAGE, own_munge_key, render_slurm
from testing.local_cluster.settings import Settings

SECRETS = Path("/run/secrets")


def settings() -> Settings:
    """Return the cluster's settings, with the same paths and names as without containers."""
    return Settings(nodes=int(os.environ["NODES"]), gpus_per_node=int(os.environ["GPUS"]))


def names() -> None:
    """Restrict name resolution to /etc/hosts, as without containers, and to addresses of the cluster's network.

    Docker's name server has no upstream server on an internal network: each unknown name takes it 10 s or more. And the
    login node has a second address outside of the cluster's network, which Slurm could not resolve.
    """
    file = Path("/etc/hosts")
    ours = (f"{os.environ['CLUSTER_NET']}.", "127.", "::1")
    lines = [line for line in file.read_text().splitlines() if line.startswith(ours)]
    # Written in place: Docker mounts both files.
    file.write_text("\n".join(dict.fromkeys(lines)) + "\n")
    Path("/etc/resolv.conf").write_text(NO_NAME_SERVER)


def slurm(cluster: Settings) -> None:
    """Write the configuration and the key that all hosts share, and create the directories of slurmctld and slurmd."""
    render_slurm(cluster, Path("/etc/slurm"))
    shutil.chown("/etc/slurm/slurmdbd.conf", "slurm", "slurm")
    key = Path("/etc/munge/munge.key")
    key.parent.mkdir(exist_ok=True)
    key.unlink(missing_ok=True)
    key.touch(mode=0o600)
    key.write_bytes(base64.b64decode((SECRETS / "munge_key").read_text()))
    own_munge_key(key)
    for folder, owner in (("slurmctld", "slurm"), ("slurmd", "root")):
        path = Path("/var/lib/slurm", folder)
        path.mkdir(parents=True, exist_ok=True)
        shutil.chown(path, owner, owner)
    log = Path("/var/log/slurm")
    log.mkdir(exist_ok=True)
    shutil.chown(log, "slurm", "slurm")


def shared_folder(cluster: Settings) -> None:
    """Create accounts, their homes and the workspace on the volume that all hosts share."""
    accounts.write_account_files(Path("/etc"), cluster.shared_dir)
    cluster.workspace.mkdir(exist_ok=True)
    os.chown(cluster.workspace, accounts.USERS["svc"], accounts.USERS["svc"])


def sshd() -> None:
    """Install the login node's host key, and the public key that Airflow logs in with."""
    etc = Path("/etc/ssh")
    keys = etc / "authorized_keys"
    keys.mkdir(parents=True, exist_ok=True)
    shutil.copy(PACKAGE / "etc" / "sshd_config", etc / "sshd_config")
    shutil.copy(SECRETS / "ssh_authorized_key", keys / "svc")
    (keys / "svc").chmod(0o644)
    host_key = etc / "ssh_host_ed25519_key"
    host_key.unlink(missing_ok=True)
    host_key.touch(mode=0o600)
    host_key.write_bytes((SECRETS / "ssh_host_key").read_bytes())


def main() -> None:
    """Prepare the host for its role."""
    cluster = settings()
    names()
    slurm(cluster)
    shared_folder(cluster)
    if sys.argv[1] == "login":
        sshd()


if __name__ == "__main__":
    main()
