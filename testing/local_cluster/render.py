"""Files of a cluster: Slurm's and sshd's configuration, keys, accounts, folders."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import string
from pathlib import Path

from testing.local_cluster import accounts
from testing.local_cluster.command import checked
from testing.local_cluster.settings import HUB, LOGIN, Settings

PACKAGE = Path(__file__).parent
NO_NAME_SERVER = "# no name server: this network has no route to others\n"


def render_slurm(settings: Settings, target: Path) -> None:
    """Write slurm.conf, slurmdbd.conf and gres.conf into a folder. Needs no root; also for containers.

    Args:
        settings: The cluster.
        target: Folder to write to; created if missing.
    """
    templates = PACKAGE / "etc"
    kind = "on" if settings.accounting else "off"
    values = dataclasses.asdict(settings) | {
        "accounting": (templates / f"accounting-{kind}.conf").read_text(),
        "gpus": f"0-{settings.gpus_per_node - 1}",
        "node_names": ",".join(settings.node_names if settings.names else [f"n[1-{settings.nodes}]"]),
    }
    target.mkdir(parents=True, exist_ok=True)
    for name in ("slurm.conf", "slurmdbd.conf", "gres.conf"):
        text = string.Template((templates / name).read_text()).substitute(values)
        (target / name).write_text(text)
    (target / "slurmdbd.conf").chmod(0o600)  # slurmdbd requires this mode, because the file has a password


def render_cluster(settings: Settings) -> None:
    """Write all files and folders of a cluster's hosts. Needs root; existing keys are kept."""
    etc, shared = settings.etc_dir, settings.shared_dir
    for folder in (
        etc,
        settings.ssh_dir,
        settings.log_dir,
        shared,
        settings.workspace,
        settings.state_dir / "hosts",
    ):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
    settings.state_dir.chmod(0o755)

    render_slurm(settings, etc / "slurm")
    shutil.chown(etc / "slurm" / "slurmdbd.conf", "slurm", "slurm")
    accounts.copy_etc(settings.host_etc_dir)
    accounts.write_account_files(etc, shared)
    os.chown(settings.workspace, accounts.USERS["svc"], accounts.USERS["svc"])
    _write_hosts_file(settings)
    (etc / "resolv.conf").write_text(NO_NAME_SERVER)
    _write_munge_key(etc / "munge")
    _write_ssh(settings)

    # The hosts run copies: the repository may be invisible to them, and may change while they run.
    shutil.copytree(PACKAGE / "roles", settings.state_dir / "roles", dirs_exist_ok=True)
    shutil.copy(PACKAGE / "host-init.sh", settings.state_dir / "host-init.sh")


def add_host_name(settings: Settings, host: str, address: str) -> None:
    """Make another host resolvable on every host (written in place, because the file is bind-mounted)."""
    with (settings.etc_dir / "hosts").open("a") as file:
        file.write(f"{address} {host}\n")


def known_addresses(settings: Settings) -> dict[str, str]:
    """Return the IP address of each host name, as the hosts resolve them."""
    pairs = (line.split() for line in (settings.etc_dir / "hosts").read_text().splitlines())
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}


def _write_hosts_file(settings: Settings) -> None:
    lines = ["127.0.0.1 localhost"]
    lines += [f"{settings.address(host)} {host}" for host in (*settings.host_names, HUB)]
    (settings.etc_dir / "hosts").write_text("\n".join(lines) + "\n")


def _write_munge_key(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    key = folder / "munge.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
    own_munge_key(key)


def own_munge_key(key: Path) -> None:
    """Make munge the owner of a key and its folder: munged refuses a key that others can read. Needs root."""
    for path in (key.parent, key):
        shutil.chown(path, "munge", "munge")
    key.parent.chmod(0o700)


def _write_ssh(settings: Settings) -> None:
    """Write sshd's folder (mounted on /etc/ssh of the login host) and the client's (`ssh/`)."""
    server, client = settings.etc_dir / "ssh", settings.ssh_dir
    (server / "authorized_keys").mkdir(parents=True, exist_ok=True)
    shutil.copy(PACKAGE / "etc" / "sshd_config", server / "sshd_config")
    host_key, client_key = server / "ssh_host_ed25519_key", client / "id_svc"
    for key, comment in ((host_key, LOGIN), (client_key, "svc")):
        if not key.exists():
            checked(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)])
    shutil.copy(client_key.with_suffix(".pub"), server / "authorized_keys" / "svc")
    kind, public = host_key.with_suffix(".pub").read_text().split()[:2]
    (client / "known_hosts").write_text(f"[127.0.0.1]:{settings.ssh_port} {kind} {public}\n")
