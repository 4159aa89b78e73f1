"""Command line: `python3 -m testing.local_cluster --help`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from testing import local_cluster
from testing.local_cluster.cluster import LocalCluster
from testing.local_cluster.errors import LocalClusterError
from testing.local_cluster.ports import LOOPBACK
from testing.local_cluster.render import render_slurm
from testing.local_cluster.settings import Settings, load_settings

FAULTS = {
    "power-off": "power off a host without shutdown",
    "power-on": "boot a host",
    "cut": "disconnect a host from the network",
    "join": "connect a host to the network again",
}
DAEMON_ACTIONS = {
    "kill": "send SIGKILL to a daemon",
    "stop": "stop a daemon with SIGTERM",
    "start": "start a daemon",
    "restart": "stop a daemon with SIGTERM and start it again",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m testing.local_cluster", description=local_cluster.__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(where: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:  # type: ignore[type-arg]
        command: argparse.ArgumentParser = where.add_parser(name, help=text, description=text)
        command.add_argument("--name", default="local", help="name of the cluster (default: local)")
        return command

    up = add(commands, "up", "start the cluster, unless it is up")
    up.add_argument("--ssh-port", type=int, help=f"port on {LOOPBACK} (default: {Settings.ssh_port})")
    _add_slurm_options(up)
    down = add(commands, "down", "stop the cluster and all of its processes")
    down.add_argument(
        "--wipe", action="store_true", help="also delete its files, the shared file system included"
    )
    status = add(commands, "status", "show hosts, daemons and nodes; exit code 1 unless all are healthy")
    status.add_argument("--json", action="store_true")
    run = add(commands, "exec", "run a command in a host: exec HOST -- COMMAND...")
    run.add_argument("--user", help="svc or other (default: root)")
    run.add_argument("host")
    run.add_argument("argv", nargs="+", metavar="COMMAND")
    for name, text in FAULTS.items():
        add(commands, name, text).add_argument("host")
    for name, text in DAEMON_ACTIONS.items():
        action = add(commands, name, text)
        action.add_argument("daemon", help="slurmctld, slurmdbd, mariadbd, sshd, slurmd or munged")
        action.add_argument("host", nargs="?", help="needed for slurmd and munged")

    service = commands.add_parser("service", help="extra hosts that run one command each")
    actions = service.add_subparsers(dest="action", required=True, metavar="start|stop")
    start = add(actions, "start", "start hub --listen 127.0.0.1:9000 --port 8000 -- COMMAND...")
    start.add_argument("--listen", required=True, help=f"{LOOPBACK}:PORT of this machine")
    start.add_argument("--port", type=int, required=True, help="port that the command listens on")
    start.add_argument("service", help="name of the host, e.g. hub")
    start.add_argument("argv", nargs="+", metavar="COMMAND")
    add(actions, "stop", "end a service").add_argument("service")

    render = add(
        commands,
        "render",
        "write slurm.conf, slurmdbd.conf and gres.conf to a folder, and start nothing (for containers)",
    )
    _add_slurm_options(render)
    render.add_argument("folder", type=Path)
    return parser


def _add_slurm_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, help=f"compute nodes (default: {Settings.nodes})")
    parser.add_argument(
        "--gpus-per-node", type=int, help=f"simulated GPUs per node (default: {Settings.gpus_per_node})"
    )
    parser.add_argument(
        "--no-accounting", dest="accounting", action="store_false", default=None, help="no sacct"
    )
    parser.add_argument("--min-job-age", type=int, help="seconds that slurmctld keeps a finished job")


def _given(args: argparse.Namespace) -> dict[str, object]:
    fields = ("ssh_port", "nodes", "gpus_per_node", "accounting", "min_job_age")
    return {field: getattr(args, field) for field in fields if getattr(args, field, None) is not None}


def _up(args: argparse.Namespace) -> int:
    given = _given(args)
    # Without options, a cluster starts with its last settings.
    cluster = LocalCluster.load(args.name) if not given and load_settings(args.name) else None
    cluster = cluster or LocalCluster(args.name, **given)  # type: ignore[arg-type]
    before = time.monotonic()
    if cluster.up():
        print(f"started in {time.monotonic() - before:.1f} s")
    else:
        print("already up")
    print(cluster.status().table())
    return 0


def _service(args: argparse.Namespace) -> int:
    cluster = LocalCluster.load(args.name)
    if args.action == "stop":
        cluster.stop_service(args.service)
        return 0
    address, _, port = args.listen.rpartition(":")
    if address != LOOPBACK or not port.isdigit():
        raise LocalClusterError(
            f"--listen {args.listen}: must be {LOOPBACK}:PORT; other addresses are not allowed"
        )
    cluster.start_service(args.service, int(port), args.port, args.argv)
    return 0


def _status(args: argparse.Namespace) -> int:
    saved = load_settings(args.name)
    status = (LocalCluster.load(args.name) if saved else LocalCluster(args.name)).status()
    print(json.dumps(status.as_dict(), indent=2) if args.json else status.table())
    return 1 if status.problems() else 0


def _dispatch(args: argparse.Namespace) -> int:
    if args.command == "up":
        return _up(args)
    if args.command == "status":
        return _status(args)
    if args.command == "service":
        return _service(args)
    if args.command == "render":
        render_slurm(Settings(args.name, **_given(args)), args.folder)  # type: ignore[arg-type]
        return 0
    if args.command == "down":
        (LocalCluster.load(args.name) if load_settings(args.name) else LocalCluster(args.name)).down(
            args.wipe
        )
        return 0
    cluster = LocalCluster.load(args.name)
    if args.command == "exec":
        return subprocess.call(cluster.exec_argv(args.host, args.argv, args.user))
    if args.command in FAULTS:
        getattr(cluster, args.command.replace("-", "_"))(args.host)
    else:
        getattr(cluster, args.command)(args.daemon, args.host)
    return 0


def main() -> int:
    """Run one command and return the exit code."""
    try:
        return _dispatch(_parser().parse_args())
    except LocalClusterError as error:
        print(f"local_cluster: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
