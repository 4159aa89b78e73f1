"""Boot a host in its namespaces, and run programs in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from testing.local_cluster import accounts
from testing.local_cluster.errors import LocalClusterError
from testing.local_cluster.namespaces import Namespaces
from testing.local_cluster.settings import LOGIN, Settings

CLEAN_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
# Created by a host's main process when all of its daemons answer; each host has its own /run.
READY = "run/llm-bridge/ready"


def boot(
    settings: Settings,
    spaces: Namespaces,
    host: str,
    command: list[str],
    env: dict[str, str],
    cwd: Path = Path("/"),
) -> None:
    """Start a host whose network namespace exists. Returns at once; see `is_ready`.

    Args:
        settings: The cluster.
        spaces: Its namespaces.
        host: Name of the host.
        command: Its main process.
        env: The whole environment of that process.
        cwd: Its working directory.
    """
    table = settings.host_dir(host) / "binds"
    plain = host not in settings.host_names
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text("".join(f"{source}\t{target}\n" for source, target in _binds(settings, host, plain)))
    log = log_file(settings, host)
    log.parent.mkdir(parents=True, exist_ok=True)
    # setsid --fork: the host has no parent, so that it outlives this program and does not become its zombie.
    argv = ["setsid", "--fork", "nsenter", f"--net={spaces.path(host)}"]
    argv += ["unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc"]
    argv += [str(settings.state_dir / "host-init.sh"), host, str(table), *command]
    with log.open("ab") as output:
        subprocess.run(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True
        )


def boot_role(settings: Settings, spaces: Namespaces, host: str) -> None:
    """Start one of the cluster's own hosts with its role script."""
    boot(settings, spaces, host, role_argv(settings, host), CLEAN_ENV)


def role_argv(settings: Settings, host: str, *arguments: str) -> list[str]:
    """Return the command line of a host's role script with its settings (a copy that is visible to the hosts)."""
    env = {
        "ACCOUNTING": str(int(settings.accounting)),
        "GPUS": str(settings.gpus_per_node),
        "NODE_NAME": host,
    }
    script = settings.state_dir / "roles" / settings.role(host)
    return ["env", *(f"{key}={value}" for key, value in env.items()), str(script), *arguments]


def log_file(settings: Settings, host: str) -> Path:
    """Return the log of a host's main process."""
    return settings.log_dir / host / "host.log"


def is_ready(init_pid: int) -> bool:
    """Return whether all daemons of the host with this main process answer."""
    return Path(f"/proc/{init_pid}/root/{READY}").exists()


def failed_boot(settings: Settings, host: str) -> LocalClusterError:
    """Return the error for a host that ended while starting, with the end of its log."""
    path = log_file(settings, host)
    tail = path.read_text(errors="replace").splitlines()[-12:] if path.exists() else []
    return LocalClusterError(
        "\n  ".join(
            [
                f"host {host} ended while starting; the end of {path} (its /var/log/slurm is {path.parent}):",
                *tail,
            ]
        )
    )


def enter_argv(settings: Settings, init_pid: int, argv: list[str], user: str | None) -> list[str]:
    """Return the command line that runs `argv` inside a running host, in the user's home.

    Args:
        settings: The cluster.
        init_pid: The host's main process.
        argv: Program and arguments.
        user: svc, other, or any system user; None means root.
    """
    user = user or "root"
    enter = ["nsenter", f"--target={init_pid}", "--net", "--uts", "--ipc", "--mount", "--pid", "--"]
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--reset-env", "--"]
    where = ["env", f"--chdir={accounts.home(user, settings.shared_dir)}", "LANG=C.UTF-8"]
    if user == "root":
        become, where = (
            [],
            ["env", "--ignore-environment", "--chdir=/root", *(f"{k}={v}" for k, v in CLEAN_ENV.items())],
        )
    return [*enter, *become, *where, *argv]


def _binds(settings: Settings, host: str, plain: bool) -> list[tuple[Path, str]]:
    """Return the mounts of a host in order; the rest of its root file system is the machine's.

    Args:
        settings: The cluster.
        host: Name of the host.
        plain: True for a service's host: only names and accounts are the cluster's, /tmp is the machine's.
    """
    etc, disk = settings.etc_dir, settings.host_dir(host)
    binds = [(settings.host_etc_dir, "/etc")]
    binds += [(etc / name, f"/etc/{name}") for name in ("hosts", "resolv.conf", "passwd", "group", "shadow")]
    if plain:
        return binds
    binds += [(etc / "slurm", "/etc/slurm"), (etc / "munge", "/etc/munge")]
    if host == LOGIN:
        binds.append((etc / "ssh", "/etc/ssh"))
    # Local disks. slurmctld and slurmdbd run as user slurm and write their logs themselves.
    log = settings.log_dir / host
    for folder, target, owner in (
        (log, "/var/log/slurm", "slurm"),
        (disk / "slurm", "/var/lib/slurm", "slurm"),
        (disk / "mysql", "/var/lib/mysql", "root"),
        (disk / "tmp", "/tmp", "root"),
    ):
        if not Path(target).exists():
            continue  # no MariaDB installed, and none configured
        _own_folder(folder, owner)
        binds.append((folder, target))
    _own_folder(disk / "slurm" / "slurmctld", "slurm")
    _own_folder(disk / "slurm" / "slurmd", "root")
    (disk / "tmp").chmod(0o1777)
    # The host's own /tmp would hide a state directory below /tmp: mount it there first.
    if settings.state_dir.is_relative_to("/tmp"):
        inner = disk / "tmp" / settings.state_dir.relative_to("/tmp")
        inner.mkdir(parents=True, exist_ok=True)
        binds.insert(0, (settings.state_dir, str(inner)))
    return binds


def _own_folder(path: Path, owner: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if path.owner() != owner:
        shutil.chown(path, owner, owner)
    os.chmod(path, 0o755)
