"""Prepare a node for Ray before it starts, and keep its logs after it has ended."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import sys
from pathlib import Path

from llm_bridge.remote.node.common import programs
from llm_bridge.remote.node.ray import ports
from llm_bridge.remote.node.ray.node_reports import log_line

MAX_SOCKET_PATH = 107  # characters; unix(7): sun_path
# Characters that Ray appends to its temp dir: /session_2026-01-01_00-00-00_000000_4194304/sockets/dash_ReporterHead
SOCKET_PATH_TAIL = 72
# Ray opens its temp dir, sockets included, to every user of the node (0777): it is inside a directory of mode 0700.
TEMP_DIR = "ray"
RECOMMENDED_OPEN_FILES = 65_536  # docs.ray.io: ulimit -n; at least one connection per worker of the cluster
KEPT_LOGS = ("job-driver-*.log", "gcs_server.*", "raylet.*", "dashboard.log", "ray_process_exit.log")
# RAY_CHECK of Ray's C++ processes (src/ray/util/logging.h): "Check failed: CONDITION MESSAGE", after which they abort;
# without the general advice that follows (src/ray/rpc/grpc_server.cc).
FAILED_CHECK = re.compile(r"Check failed: (.+?)(?:\. This means that .*)?$", re.MULTILINE)
MAX_LOG_BYTES = 1 << 20
MAX_CAUSE_LENGTH = 300


class NodeProblem(Exception):
    """Ray cannot run on this node; the text gives the reason and what to do."""


def usable_gpus(env: dict[str, str], wanted: int) -> int:
    """Return the number of GPUs for Ray: ``wanted``, if the allocation has at least that number here.

    Args:
        env: Environment variables of this task.
        wanted: Required number of GPUs.

    Raises:
        NodeProblem: There are fewer.
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
    """Return the number of CPUs for Ray: the cluster file's, else the allocation's, never the whole machine's.

    Args:
        env: Environment variables of this task.
        setting: The cluster file's number, if any.
    """
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
    """Return the `ray start` command of one node, with every port that Ray lets one set.

    Args:
        name: The node's name in Slurm, which Ray then shows too.
        address: This node's IP.
        block: First port of this node's block.
        gcs: IP:PORT of the head's GCS; None on the head itself.
        cpus: Number of CPUs to announce.
        gpus: Number of GPUs to announce.
        temp_dir: Node-local directory of this job.
        object_store_gib: Size of the object store in GiB; None means Ray's default.
    """
    port = ports.ports(block)
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
        # Ray Client's server cannot be disabled: 0 is refused (ray 2.60, _private/parameter.py).
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
    for_all = ("--disable-usage-stats", "--block")
    return programs.command("ray-cli", "start", "--log-color=false", *arguments, *for_all)


def prepare_environment(block: int) -> None:
    """Set the environment variables that Ray and all jobs on this node inherit.

    Args:
        block: First port of this node's block.
    """
    # verl stops if ROCm's variable is set beside CUDA's ("set one of them"); some sites' prologs set all of them.
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        os.environ.pop("ROCR_VISIBLE_DEVICES", None)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR"):  # of some other cluster
        os.environ.pop(name, None)
    port = ports.ports(block)
    # The defaults, 44217 and 44227, allow one cluster per node only (ray/dashboard/consts.py).
    os.environ["AUTOSCALER_METRIC_PORT"] = str(port["autoscaler_metrics"])
    os.environ["DASHBOARD_METRIC_PORT"] = str(port["dashboard_metrics"])
    # By default a raylet that connects to its object store too early sleeps for a second (1000 ms, 10 times).
    os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "100")
    os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "100")
    # Ray jobs' entrypoints find `python` and `ray` by the PATH of `ray start`.
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )


def raise_open_files_limit(node: str) -> None:
    """Raise the soft limit of open files to the hard limit, and warn if that is low.

    Args:
        node: This node's name, for the warning.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < RECOMMENDED_OPEN_FILES:
        log_line(
            f"warning: the limit of open files here is {hard} (ulimit -Hn); Ray recommends {RECOMMENDED_OPEN_FILES}",
            node,
        )


def make_folder(parent: Path, job_id: str) -> Path:
    """Create an empty directory for this job alone on the node's own disk, and return it.

    Args:
        parent: The cluster file's ``ray.temp_dir``; shared by all users.
        job_id: Slurm's id of the job.

    Raises:
        NodeProblem: It cannot be created, or its path is too long for unix sockets.
    """
    folder = parent / job_id
    max_parent = MAX_SOCKET_PATH - SOCKET_PATH_TAIL - len(f"/{job_id}/{TEMP_DIR}")
    if len(str(parent)) > max_parent:
        raise NodeProblem(
            f"ray.temp_dir {str(parent)!r} of the cluster file has {len(str(parent))} characters: choose one with at"
            f" most {max_parent}, since the paths of Ray's unix sockets in it are limited to {MAX_SOCKET_PATH}"
        )
    try:
        try:
            parent.mkdir(parents=True)
            parent.chmod(0o1777)  # as /tmp: other users' Ray creates directories here too
        except FileExistsError:
            pass
        if folder.exists():  # this job has run here before (requeue) and was killed before its cleanup
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise NodeProblem(
            f"cannot create Ray's directory: {error}; set ray.temp_dir in the cluster file"
        ) from error
    return folder


def keep_logs(logs: Path, target: Path) -> None:
    """Copy the ends of the logs that explain the end of Ray or of a job.

    Args:
        logs: The directory of Ray's logs, which is about to be removed.
        target: The directory that receives the copies.
    """
    for log in (found for pattern in KEPT_LOGS for found in logs.glob(pattern)):
        try:
            if data := _tail(log):
                target.mkdir(mode=0o700, parents=True, exist_ok=True)
                (target / log.name).write_bytes(data)
        except OSError as error:
            log_line(f"cannot copy {log} to {target}: {error}")


def cause(log: Path, ray_logs: Path | None = None, start: int = 0) -> str:
    """Return the reason for the end of `ray start --block`.

    That is the process that ended, else an error, else the last line; with the check that failed in that process.

    Args:
        log: The output of `ray start`.
        ray_logs: The directory of Ray's own logs: `ray start` only says that a raylet ended.
        start: Offset in the output at which this `ray start` begins: before a requeue, another one wrote to it.
    """
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ended = [line for line in lines if "[exit code=" in line]
    errors = [line for line in lines if re.search(r"(Error|Exception)\b.*:", line)]
    # Without Ray's time, level and source line.
    last = re.sub(r"^\S+ \S+\s+[A-Z]+ \S+:\d+ -- ", "", (ended or errors or lines or ["no output"])[-1])
    # A process that was killed may have made others fail: those are not the cause.
    processes = [last.partition(" [exit code=")[0]] if ended else ["raylet", "gcs_server"]
    if ray_logs and (failed := _failed_check(ray_logs, processes)):
        last = f"{last}: {failed}" if ended else failed
    return last[:MAX_CAUSE_LENGTH]


def _failed_check(logs: Path, processes: list[str]) -> str | None:
    """Return the first failed check (RAY_CHECK) in the logs of some processes of Ray, if any."""
    for process in processes:
        for log in sorted(logs.glob(f"{process}.*")):
            with contextlib.suppress(OSError):
                if found := FAILED_CHECK.search(_tail(log).decode(errors="replace")):
                    return f"{log.name}: {found.group(1).strip()}"
    return None


def _tail(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - MAX_LOG_BYTES))
        return file.read()
