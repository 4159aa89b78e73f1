"""Start a Ray cluster on the nodes of this Slurm job, verify it, monitor it, and end it.

``python3 node.pyz ray-head-guard SRUN... python3 node.pyz ray-node-agent``, in the batch step on the first node;
standard library only.

The guard chooses ports, creates the token, and starts the given command, which runs the node agent on every node. When
all nodes have joined with all their GPUs and the cluster has passed its tests, it writes `cluster.json`. From then on
it polls the cluster every few seconds. When Ray or a node has died, or no job has run for `idle_minutes`, it writes
`reason.json` and ends the job.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Started
from llm_bridge.remote.node.common.job_io import read_json, write_json
from llm_bridge.remote.node.ray import health, network, ports
from llm_bridge.remote.node.ray.dashboard_api import Dashboard, DashboardUnavailable
from llm_bridge.remote.node.ray.health import HealthMonitor, Observation, Verdict
from llm_bridge.remote.node.ray.node_reports import NodeReports, log_line

POLL_INTERVAL_SECONDS = 3.0
START_POLL_INTERVAL_SECONDS = 0.25
PROGRESS_INTERVAL_SECONDS = 15.0
STOP_TIMEOUT_SECONDS = 5.0  # a node cleans up in about 1.5 s; one that is switched off never answers
# Slurm kills this process after KillWait, 3 s on some sites; the nodes get SIGTERM from Slurm too. A node needs its
# STOP_GRACE_SECONDS (node_agent.py), then about 0.5 s to copy logs.
TERMINATED_STOP_TIMEOUT_SECONDS = 2.5
SCONTROL_TIMEOUT_SECONDS = 60


class Ending(Exception):
    """The cluster ends with this verdict."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


class Terminated(Exception):
    """Slurm ends this job: scancel, time limit, preemption."""


class Guard:
    """One cluster, from its first process to its last.

    Args:
        attempt: The attempt's directory.
    """

    def __init__(self, attempt: Path) -> None:
        self.attempt = attempt
        self.settings = read_json(attempt / attempt_dir.SETTINGS)
        self.reports = NodeReports(attempt)
        self.nodes: list[str] = []
        self.step: subprocess.Popen[bytes] | None = None
        self.reservation: socket.socket | None = None  # of the block of ports
        self.phases = {"allocated": _started(attempt), "environment": time.time()}

    def run(self, command: list[str]) -> None:
        """Start, verify, and monitor the cluster.

        Args:
            command: Runs the node agent on every node, with further arguments appended.

        Raises:
            Ending: The cluster has to end.
            Terminated: Slurm ends the job.
            RuntimeError: There is no usable address, or no free port.
        """
        waited = self.phases["environment"] - self.phases["allocated"]
        log_line(f"nodes allocated, environment ready after {waited:.1f} s")
        self.nodes = host_names(os.environ["SLURM_JOB_NODELIST"])
        self._check_allocation()
        self.head_ip = network.own_address(self.head)
        blocks = ports.blocks(ports.ephemeral_start())
        block, self.reservation = ports.take(int(os.environ["SLURM_JOB_ID"]), blocks)
        self.port = ports.ports(block)
        self.dashboard = Dashboard(f"http://{self.head_ip}:{self.port['dashboard']}", self._make_token())
        log_line(f"head on {self.head}, {self.head_ip}, ports from {block}; nodes: {' '.join(self.nodes)}")
        arguments = [f"--head={self.head}", f"--head-ip={self.head_ip}", f"--block={block}"]
        self.step = subprocess.Popen([*command, *arguments])
        addresses = self._wait_until_joined(self.step)
        self._test()
        self._publish(addresses)
        self._monitor(self.step)

    @property
    def head(self) -> str:
        """Name of the head's node, the first one."""
        return self.nodes[0]

    def _check_allocation(self) -> None:
        wanted, here = self.settings["nodes"], os.environ.get("SLURMD_NODENAME", self.head)
        if len(self.nodes) != wanted:
            reason = f"Slurm allocated {len(self.nodes)} nodes, the settings require {wanted}"
            raise Ending(Verdict("wrong_size", reason, retry=False))
        if here != self.head:
            reason = (
                f"the batch script runs on {here}, but Ray's head must run on the first node, {self.head}"
            )
            raise Ending(Verdict("wrong_node", reason, retry=False))

    def _make_token(self) -> str:
        token, path = secrets.token_hex(32), self.attempt / attempt_dir.RAY_TOKEN
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token)
        # Ray and its jobs read the file: a token in a variable would appear wherever variables are listed.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.pop("RAY_AUTH_TOKEN", None)
        return token

    def _phase(self, name: str, text: str) -> None:
        self.phases[name] = time.time()
        log_line(f"{text} after {self.phases[name] - self.phases['environment']:.1f} s")

    def _wait_until_joined(self, step: subprocess.Popen[bytes]) -> dict[str, str]:
        """Wait until every node has joined with its GPUs, and return node -> IP."""
        minutes = self.settings["ready_minutes"]
        deadline = time.monotonic() + minutes * 60
        next_progress = time.monotonic() + PROGRESS_INTERVAL_SECONDS
        while True:
            try:
                rows = self.dashboard.nodes()
            except DashboardUnavailable:
                rows = []
            absent = health.missing(rows, self.nodes, self.settings["gpus_per_node"])
            if self.head not in absent and "head_up" not in self.phases:
                self._phase("head_up", "head up")
            if not absent:
                self._phase("workers_joined", f"all {len(self.nodes)} nodes joined")
                return {row["node_name"]: row["node_ip"] for row in rows}
            reports = self.reports.read()
            self._end_if(health.failed(reports, "not_started") or health.dead(rows, self.nodes))
            if step.poll() is not None:
                raise Ending(health.step_ended(step.returncode, reports))
            if time.monotonic() > deadline:
                raise Ending(health.not_joined(absent, reports, len(self.nodes), minutes))
            if time.monotonic() > next_progress:
                next_progress += PROGRESS_INTERVAL_SECONDS
                joined = len(self.nodes) - len(absent)
                log_line(f"{joined} of {len(self.nodes)} nodes joined; waiting for {' '.join(absent)}")
            time.sleep(START_POLL_INTERVAL_SECONDS)

    def _test(self) -> None:
        """Check that the dashboard refuses requests without a valid token, and that every raylet is reachable."""
        for token, wanted in ((None, 401), ("0" * 64, 403)):
            try:
                status = self.dashboard.status("/api/jobs/", token)
            except DashboardUnavailable as error:
                reason = f"the dashboard on {self.head} does not answer: {error}"
                raise Ending(Verdict("test_failed", reason, (self.head,))) from error
            if status != wanted:
                kind = "a wrong" if token else "no"
                reason = f"with {kind} token the dashboard answers HTTP {status}, not {wanted}: it is not protected"
                raise Ending(Verdict("test_failed", reason, (self.head,), retry=False))
        reports = self.reports.read()
        known = [
            node for node in self.nodes if "block" in reports.get(node, {})
        ]  # NFS may show a report late
        for node in known:
            report = reports[node]
            raylet = f"{report['ip']}:{ports.ports(report['block'])['node_manager']}"
            if not network.answers(raylet):
                reason = f"{self.head} cannot connect to Ray on {node} at {raylet}; check the nodes' network"
                raise Ending(Verdict("test_failed", reason, (node,)))
        self._phase("verified", "verified")

    def _publish(self, addresses: dict[str, str]) -> None:
        gpus = self.settings["gpus_per_node"]
        cluster = {
            "job_id": os.environ["SLURM_JOB_ID"],
            "head_node": self.head,
            "gcs_address": f"{self.head_ip}:{self.port['gcs']}",
            "dashboard": self.dashboard.url,
            "nodes": [{"name": node, "ip": addresses[node]} for node in self.nodes],
            "gpus_per_node": gpus,
            "total_gpus": gpus * len(self.nodes),
            "python": self.reports.read()[self.head]["python"],
            "phases": self.phases,
        }
        write_json(self.attempt / attempt_dir.CLUSTER, cluster)
        log_line(
            f"ready: {len(self.nodes)} nodes, {cluster['total_gpus']} GPUs, dashboard {self.dashboard.url}"
        )

    def _monitor(self, step: subprocess.Popen[bytes]) -> None:
        monitor = HealthMonitor(self.nodes, time.monotonic(), self.settings.get("idle_minutes"))
        while True:
            self._end_if(monitor.update(self._observe(step)))
            time.sleep(POLL_INTERVAL_SECONDS)

    def _observe(self, step: subprocess.Popen[bytes]) -> Observation:
        error, rows, is_busy = None, None, None
        try:
            self.dashboard.check_gcs()
            rows = self.dashboard.nodes()
            if self.settings.get("idle_minutes") is not None:
                is_busy = health.busy(self.dashboard.jobs())
        except DashboardUnavailable as unavailable:
            error = str(unavailable)
            log_line(f"warning: Ray on {self.head} does not answer: {error}")
        return Observation(time.monotonic(), step.poll(), self.reports.read(), error, rows, is_busy)

    def _end_if(self, verdict: Verdict | None) -> None:
        if verdict is not None:
            raise Ending(verdict)

    def stop(self, seconds: float) -> None:
        """Stop Ray on all nodes.

        Args:
            seconds: Time limit; Slurm ends the nodes that are left together with the job.
        """
        if self.step is None or self.step.poll() is not None:
            return
        # srun forwards USR1 to its tasks, which then clean up; on TERM it has them killed (measured, 22.05).
        self.step.send_signal(signal.SIGUSR1)
        try:
            self.step.wait(seconds)
        except subprocess.TimeoutExpired:
            log_line(f"not every node has stopped within {seconds:g} s; Slurm ends the rest with the job")
            # Where Slurm runs without cgroups, srun would outlive the job, waiting for its nodes.
            self.step.kill()


def host_names(node_list: str) -> list[str]:
    """Return the names in a Slurm node list, in its order."""
    argv = ["scontrol", "show", "hostnames", node_list]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=SCONTROL_TIMEOUT_SECONDS)
    return parse_host_names(done.stdout)


def parse_host_names(output: str) -> list[str]:
    """Return the names in the output of `scontrol show hostnames`, which prints one per line.

    Raises:
        ValueError: There is none.
    """
    names = output.split()
    if not names:
        raise ValueError("`scontrol show hostnames` printed no name")
    return names


def remove_stale_files(attempt: Path) -> None:
    """Remove the files of this job's earlier start (requeue), which would be read as this one's.

    Args:
        attempt: The attempt's directory.
    """
    files = [attempt / name for name in (attempt_dir.CLUSTER, attempt_dir.REASON, attempt_dir.RAY_TOKEN)]
    for path in [*files, *(attempt / attempt_dir.RAY_NODES).glob(f"*{attempt_dir.JSON_SUFFIX}")]:
        path.unlink(missing_ok=True)


def _started(attempt: Path) -> float:
    started: Started | None = attempt_dir.read_shape(Started, str(attempt), attempt_dir.STARTED)
    return started.started if started else time.time()


def main() -> int:
    """Run the program; the exit code that it returns is the job's."""

    def terminate(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    attempt = Path(os.environ["ATTEMPT_DIR"])
    remove_stale_files(attempt)
    guard = Guard(attempt)
    try:
        guard.run(sys.argv[1:])
    except Terminated:
        log_line("Slurm ends this job: stopping Ray")
        guard.stop(TERMINATED_STOP_TIMEOUT_SECONDS)
        return 128 + signal.SIGTERM
    except Ending as ending:
        verdict = ending.verdict
    except RuntimeError as error:  # no address, no free port
        verdict = Verdict("cannot_start", str(error))
    except Exception as error:
        traceback.print_exc()
        verdict = Verdict("internal_error", f"{type(error).__name__}: {error}")
    try:
        log_line(f"{'ending' if verdict.exit_code == 0 else 'error'}: {verdict.reason}")
        write_json(attempt / attempt_dir.REASON, verdict.as_reason())
        guard.stop(STOP_TIMEOUT_SECONDS)
    except Terminated:
        pass  # Slurm ends the nodes by itself; the verdict stands
    return verdict.exit_code
