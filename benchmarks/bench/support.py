"""Common parts of the sections: the local cluster, the peers' environment, counters, and the type of a section."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from llm_bridge.config.cluster import Cluster
from testing import paths, processes
from testing.local_cluster import LocalCluster
from testing.local_cluster.errors import LocalClusterError
from testing.local_cluster.ports import LOOPBACK
from testing.site import CONNECTION, Site

FOLDER = Path("build/bench")
# Nodes of the cluster: as many as the Ray section needs. More CPUs than the machine has: all jobs run at once.
NAME, SSH_PORT, NODES, CPUS_PER_NODE = "bench", 23522, 8, 128
STARTS = 4
# Connection of the peers: Airflow's SSHHook takes other extras than llm-bridge.
PEER_CONNECTION = "bench_peer"
POLL_SECONDS = float(Cluster.model_fields["poll_seconds"].default)


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        what: What is measured, with its unit.
        ours: Our value; None if it was not measured.
        goal: Limit that the goal sets.
        peers: Name -> the peer's value.
        at_least: The goal is a lower limit, and more is better.
        note: Remark for the table.
    """

    what: str
    ours: float | None
    goal: float | None = None
    peers: Mapping[str, float | None] = field(default_factory=dict)
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """True if the goal is met; None if there is none, or no value."""
        if self.ours is None or self.goal is None:
            return None
        return self.ours >= self.goal if self.at_least else self.ours <= self.goal

    def ratios(self) -> dict[str, float]:
        """Return ours divided by each peer's value."""
        return {
            name: self.ours / value for name, value in self.peers.items() if value and self.ours is not None
        }


@dataclass(frozen=True)
class Section:
    """Section of the report.

    Attributes:
        name: Key in report.json.
        title: Title in the table.
        run: Measures, and returns the section of report.json.
        figures: Returns the rows of the table for that.
        needs_cluster: The section runs on the local cluster.
    """

    name: str
    title: str
    run: Callable[[Bench], dict[str, Any]]
    figures: Callable[[dict[str, Any]], list[Figure]]
    needs_cluster: bool = True


class Bench:
    """The local cluster of a run of the benchmarks, and what sections share."""

    def __init__(self) -> None:
        self.cluster = LocalCluster(NAME, ssh_port=SSH_PORT, nodes=NODES)
        self.cluster.settings = dataclasses.replace(self.cluster.settings, cpus_per_node=CPUS_PER_NODE)
        self.shared: dict[str, Any] = {}  # results of one section that another one shows, too
        self._up = False
        self._folders = 0

    def up(self) -> None:
        """Start the cluster, unless it is up, and set Airflow's variables for it."""
        if self._up:
            return
        self.cluster.down(wipe=True)
        for left in reversed(range(STARTS)):
            try:
                self.cluster.up()
                break
            except LocalClusterError:  # a host that needs more than a minute to start: the machine is busy
                if not left:
                    raise
        self._up = True
        # Slurm's default interval; the 2 s of this cluster are for tests, and cost a core with 500 jobs.
        conf = self.cluster.settings.etc_dir / "slurm" / "slurm.conf"
        conf.write_text(
            conf.read_text().replace("JobAcctGatherFrequency=task=2", "JobAcctGatherFrequency=task=30")
        )
        self.cluster.run("ctl", ["scontrol", "reconfigure"])
        folder = (FOLDER / "site").resolve()
        shutil.rmtree(folder, ignore_errors=True)
        # Values of a site, not those of the demo: poll_seconds is the cluster file's default.
        self.site = Site(
            self.cluster,
            folder,
            hub={},
            environment={},
            poll_seconds=POLL_SECONDS,
            mem="100M",
            cpus_per_task=1,
        )
        os.environ |= self.site.environment
        extra = {"key_file": str(self.cluster.ssh_key), "no_host_key_check": True}
        # SSHHookAsync reads the key's text; SSHHook takes the file.
        peer = {
            **json.loads(os.environ[CONNECTION]),
            "extra": extra | {"known_hosts": str(self.cluster.known_hosts)},
        }
        os.environ[f"AIRFLOW_CONN_{PEER_CONNECTION.upper()}"] = json.dumps(peer)

    def down(self) -> None:
        """Stop the cluster and delete its files."""
        if self._up:
            self.cluster.down(wipe=True)

    def new_folder(self, name: str) -> Path:
        """Make a folder of the jobs' user on the shared file system."""
        self._folders += 1
        folder = self.cluster.workspace / f"{name}-{self._folders}"
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        return folder

    def as_svc(self, *argv: str) -> str:
        """Run a program of user svc on the login node and return its output."""
        return self.site.run("login", *argv, user="svc")

    @property
    def connection(self) -> dict[str, Any]:
        """Address and login for a peer."""
        return {"host": LOOPBACK, "port": SSH_PORT, "login": "svc", "key_file": str(self.cluster.ssh_key)}

    # ---- counters

    def counters(self) -> dict[str, int]:
        """Return counts since the cluster's start: RPCs of user svc, and its SSH connections."""
        ctld = self.cluster.run("ctl", ["sdiag"]).stdout
        dbd = self.cluster.run("ctl", ["sacctmgr", "show", "stats"]).stdout
        log = (self.cluster.settings.log_dir / "login" / "sshd.out").read_text(errors="replace")
        return {
            "slurmctld": _of_svc(ctld),
            "slurmdbd": _of_svc(dbd),
            "connections": log.count("Accepted publickey for svc"),
            "refused": _refused(log),
            "no_session": log.count("no more sessions"),
        }

    def types(self) -> dict[str, int]:
        """Return slurmctld's counts of RPCs by type, of all users."""
        ctld = self.cluster.run("ctl", ["sdiag"]).stdout
        return {name: int(n) for name, n in re.findall(r"^\t([A-Z]\w+) .*?count:(\d+)", ctld, re.MULTILINE)}


def _of_svc(text: str) -> int:
    found = re.search(r"^\tsvc\s.*?count:(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _refused(log: str) -> int:
    """Return the number of connections that sshd dropped: it says how many when it stops, and when it begins to."""
    dropped = sum(map(int, re.findall(r"exited MaxStartups throttling .* (\d+) connections dropped", log)))
    named = len(re.findall(r"drop connection .* past MaxStartups", log, re.IGNORECASE))
    return max(dropped, named, log.count("beginning MaxStartups throttling"))


def difference(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """Return what was counted between two moments."""
    return {
        name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)
    }


# ---- the peers' environment


def peers_python() -> Path:
    """Return the Python of the peers' environment; install it if it is missing or has other versions."""
    home, wanted = paths.home() / "bench-env", Path(__file__).with_name("requirements.txt")
    python, stamp = home / "bin" / "python", home / ".requirements"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        print(f"bench: installing the peers in {home}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        log = FOLDER / "install.log"
        with log.open("w") as file:
            argv = [str(python), "-m", "pip", "install", "--quiet", "-r", str(wanted)]
            if subprocess.run(argv, stdout=file, stderr=file).returncode:
                raise SystemExit(
                    f"bench: the peers cannot be installed, see {log}; without them: SECTIONS=parse"
                )
        # Also read by user svc on the login node.
        subprocess.run(["chmod", "-R", "a+rX", str(home)], check=True)
        stamp.write_text(wanted.read_text())
    return python


# ---- measures


@dataclass(frozen=True)
class Use:
    """CPU seconds and memory of a process and its descendants."""

    cpu_s: float
    bytes: int


def use_of(pid: int, *, alone: bool = False) -> Use:
    """Return what a process and its descendants have used, those that have ended included.

    Args:
        pid: The process.
        alone: Without its descendants.
    """
    seconds, pids = 0.0, [pid]
    root = psutil.Process(pid)
    for process in [root] if alone else [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        seconds += times.user + times.system
        if not alone:
            seconds += times.children_user + times.children_system
        pids.append(process.pid)
    return Use(seconds, processes.memory(set(pids)))


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the value that a share of the values does not exceed; None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return number, median, p95, p99 and maximum of seconds."""
    return {
        "count": len(values),
        "p50": round(statistics.median(values), 3) if values else None,
        "p95": percentile(values, 0.95),
        "p99": percentile(values, 0.99),
        "max": round(max(values), 3) if values else None,
    }


def load() -> float:
    """Return the machine's load average of the last minute."""
    return round(os.getloadavg()[0], 1)


@contextmanager
def child(argv: Sequence[str | Path], log: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a program with pipes and a log for its messages; end its process group after the block."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            **options,
        )
    try:
        yield process
    finally:
        descendants = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in descendants:
            try:
                one.kill()
            except psutil.Error:
                continue
        process.kill()
        process.wait()
