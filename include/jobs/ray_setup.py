"""What Ray needs on a node before it starts, and what is kept when it has ended."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
from pathlib import Path

import ray_ports
from ray_reports import say

SOCKET_PATH_LIMIT = 107  # unix(7): sun_path
# What Ray puts behind its temp dir: /session_2026-01-01_00-00-00_000000_4194304/sockets/dash_ReporterHead and alike
SOCKET_PATH_TAIL = 72
# Ray opens its temp dir to every user of the node (0777), sockets included: it lies in a folder that is ours alone.
TEMP_DIR = "ray"
OPEN_FILES_WANTED = 65_536  # docs.ray.io: ulimit -n, a connection and more for each worker of the cluster
LOGS_KEPT = ("job-driver-*.log", "gcs_server.*", "raylet.*", "dashboard.log", "ray_process_exit.log")
LOG_BYTES_KEPT = 1 << 20


class NodeProblem(Exception):
    """Ray cannot run on this node; the text says why and what to do."""


def usable_gpus(env: dict[str, str], wanted: int) -> int:
    """GPUs to give to Ray: as many as are wanted, of those that Slurm really gave this task.

    Raises:
        NodeProblem: there are fewer.
    """
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        given = len([device for device in visible.split(",") if device.strip() not in ("", "NoDevFiles")])
    else:
        given = int(env.get("SLURM_GPUS_ON_NODE") or 0)
    if given < wanted:
        raise NodeProblem(
            f"has {given} of {wanted} GPUs in its allocation (CUDA_VISIBLE_DEVICES={visible},"
            f" SLURM_GPUS_ON_NODE={env.get('SLURM_GPUS_ON_NODE')}); check gpus_per_node and gpu_request in the"
            " cluster file, and the node's driver"
        )
    return wanted


def usable_cpus(env: dict[str, str], setting: int | None) -> int:
    """CPUs to give to Ray: the cluster file's, else the allocation's, never the whole machine's by accident."""
    given = setting or env.get("SLURM_CPUS_PER_TASK") or env.get("SLURM_CPUS_ON_NODE")
    return int(given) if given else len(os.sched_getaffinity(0))


def ray_command(
    *,
    name: str,
    address: str,
    block: int,
    gcs: str | None,
    cpus: int,
    gpus: int,
    temp_dir: Path,
    object_store_gib: float | None,
) -> list[str]:
    """The `ray start` of one node; every port that it can be told is told.

    Args:
        name: the node's name in Slurm, which Ray then shows too.
        address: this node's IP.
        block: first port of this node's block.
        gcs: IP:PORT of the head; None on the head itself.
        cpus: CPUs to announce.
        gpus: GPUs to announce.
        temp_dir: node-local folder of this job.
        object_store_gib: size of the object store; Ray's default when None.
    """
    port = ray_ports.ports(block)
    options: dict[str, object] = {
        "node-name": name,
        "node-ip-address": address,
        "num-cpus": cpus,
        "num-gpus": gpus,
        "temp-dir": temp_dir,
        "node-manager-port": port["node_manager"],
        "object-manager-port": port["object_manager"],
        "dashboard-agent-listen-port": port["agent_http"],
        "dashboard-agent-grpc-port": port["agent_grpc"],
        "runtime-env-agent-port": port["runtime_env"],
        "metrics-export-port": port["metrics"],
        "min-worker-port": port["workers_from"],
        "max-worker-port": port["workers_to"],
        # Ray Client's server cannot be switched off: 0 is refused (ray 2.60, _private/parameter.py).
        "ray-client-server-port": port["client"],
    }
    if object_store_gib:
        options["object-store-memory"] = int(object_store_gib * 2**30)
    if gcs is None:
        # dashboard-host: never 0.0.0.0, Ray's documentation warns of it; include-dashboard: fail when it cannot start
        options |= {
            "head": None,
            "include-dashboard": "true",
            "port": port["gcs"],
            "dashboard-host": address,
            "dashboard-port": port["dashboard"],
        }
    else:
        options["address"] = gcs
    arguments = [
        f"--{option}" if value is None else f"--{option}={value}" for option, value in options.items()
    ]
    ray = [sys.executable, str(Path(__file__).with_name("ray_start.py")), "start", "--log-color=false"]
    return [*ray, *arguments, "--disable-usage-stats", "--block"]


def prepare_environment(block: int) -> None:
    """What Ray and all jobs on this node inherit."""
    # ROCm's variable beside CUDA's makes verl stop ("set one of them"); some sites' prologs set all of them.
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        os.environ.pop("ROCR_VISIBLE_DEVICES", None)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):  # of some other cluster
        os.environ.pop(name, None)
    port = ray_ports.ports(block)
    # 44217 and 44227 without these: one cluster a node (ray/dashboard/consts.py)
    os.environ["AUTOSCALER_METRIC_PORT"] = str(port["autoscaler_metrics"])
    os.environ["DASHBOARD_METRIC_PORT"] = str(port["dashboard_metrics"])
    # A raylet that looks for its object store a moment too early sleeps for a second (1000 ms, 10 times, by default).
    os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "100")
    os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "100")
    # Ray jobs' entrypoints find `python` and `ray` by the PATH of `ray start`.
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )


def raise_open_files_limit(node: str) -> None:
    """Allow as many open files as this user may have, and warn when that is few."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES_WANTED:
        say(f"warning: at most {hard} open files here (ulimit -Hn); Ray asks for {OPEN_FILES_WANTED}", node)


def make_folder(parent: Path, job: str) -> Path:
    """A folder for this job alone on the node's own disk, empty.

    Raises:
        NodeProblem: it cannot be made or is too long for unix sockets.
    """
    folder = parent / job
    room = SOCKET_PATH_LIMIT - SOCKET_PATH_TAIL - len(f"/{job}/{TEMP_DIR}")
    if len(str(parent)) > room:
        raise NodeProblem(
            f"ray.temp_dir {str(parent)!r} of the cluster file has {len(str(parent))} characters: choose one with at"
            f" most {room}, since the paths of Ray's unix sockets in it must not have more than {SOCKET_PATH_LIMIT}"
        )
    try:
        try:
            parent.mkdir(parents=True)
            parent.chmod(0o1777)  # as /tmp: other users' Ray wants to be here too
        except FileExistsError:
            pass
        if folder.exists():  # this job's first life ended too hard to clean up (requeue)
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise NodeProblem(
            f"cannot make Ray's folder: {error}; set ray.temp_dir in the cluster file"
        ) from error
    return folder


def keep_logs(logs: Path, target: Path) -> None:
    """Save the ends of the logs that tell why Ray or a job died: the folder they are in is about to go."""
    for log in (found for pattern in LOGS_KEPT for found in logs.glob(pattern)):
        try:
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - LOG_BYTES_KEPT))
                data = file.read()
            if data:
                target.mkdir(mode=0o700, parents=True, exist_ok=True)
                (target / log.name).write_bytes(data)
        except OSError as error:
            say(f"could not keep {log.name}: {error}")


def cause(log: Path) -> str:
    """What `ray start --block` said last of why it ended: which of its processes ended, or the error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    ended = [line for line in lines if "[exit code=" in line]
    errors = [line for line in lines if re.search(r"(Error|Exception)\b.*:", line)]
    last = (ended or errors or lines or ["it said nothing"])[-1]
    return re.sub(r"^\S+ \S+\s+[A-Z]+ \S+:\d+ -- ", "", last)[:300]  # Ray's time, level and source line
