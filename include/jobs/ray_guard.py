"""Brings a Ray cluster up on the nodes of this Slurm job, vouches for it, watches it, and ends it.

python3 ray_guard.py SRUN... python3 ray_node.py     (in the batch step on the first node; standard library only)

It chooses ports, makes the token and starts the given command, which runs ray_node.py on every node. When all
nodes have joined with all their GPUs and the cluster has been tested, it writes `cluster.json`. From then on it
looks every few seconds. When Ray is dead, a node gone, or no job has run for `idle_minutes`, it writes
`reason.json` and ends the job.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import ray_health
import ray_network
import ray_ports
from job_io import read_json, write_json
from ray_health import Seen, Verdict, Watch
from ray_reports import NodeReports, say
from ray_rest import Dashboard, NoAnswer

CHECK_SECONDS = 3.0
START_POLL_SECONDS = 0.25
STILL_WAITING_SECONDS = 15.0
STOP_SECONDS = 5.0  # a node cleans up in about 2; one that is switched off never answers
TERMINATED_SECONDS = 1.5  # Slurm kills this after KillWait, 3 s on some sites; nodes get TERM from it too


class Ending(Exception):
    """The cluster ends with this verdict."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


class Terminated(Exception):
    """Slurm ends this job: scancel, time limit, preemption."""


class Guard:
    """One cluster from its first process to its last."""

    def __init__(self, attempt_dir: Path) -> None:
        self.attempt_dir = attempt_dir
        self.settings = read_json(attempt_dir / "settings.json")
        self.reports = NodeReports(attempt_dir)
        self.nodes: list[str] = []
        self.step: subprocess.Popen | None = None
        self.phases = {"allocated": _started(attempt_dir), "environment": time.time()}

    def run(self, command: list[str]) -> None:
        """Everything; ends by Ending or Terminated only."""
        waited = self.phases["environment"] - self.phases["allocated"]
        say(f"nodes allocated, environment ready after {waited:.1f} s")
        self.nodes = host_names(os.environ["SLURM_JOB_NODELIST"])
        self._check_allocation()
        self.head_ip = ray_network.own_address(self.head)
        blocks = ray_ports.blocks(ray_ports.ephemeral_start())
        block = ray_ports.choose(int(os.environ["SLURM_JOB_ID"]), blocks, ray_ports.taken)
        self.port = ray_ports.ports(block)
        self.dashboard = Dashboard(f"http://{self.head_ip}:{self.port['dashboard']}", self._make_token())
        say(f"head on {self.head}, {self.head_ip}, ports from {block}; nodes: {' '.join(self.nodes)}")
        place = [f"--head={self.head}", f"--head-ip={self.head_ip}", f"--block={block}"]
        self.step = subprocess.Popen([*command, *place])
        addresses = self._wait_until_joined()
        self._test()
        self._publish(addresses)
        self._watch()

    @property
    def head(self) -> str:
        """Name of the head's node, the first one."""
        return self.nodes[0]

    def _check_allocation(self) -> None:
        wanted, here = self.settings["nodes"], os.environ.get("SLURMD_NODENAME", self.head)
        if len(self.nodes) != wanted:
            told = f"Slurm gave {len(self.nodes)} nodes, the settings ask for {wanted}"
            raise Ending(Verdict("wrong_size", told, retry=False))
        if here != self.head:
            told = (
                f"the batch script runs on {here}, not on the first node {self.head}, where Ray's head goes"
            )
            raise Ending(Verdict("wrong_node", told, retry=False))

    def _make_token(self) -> str:
        token, path = secrets.token_hex(32), self.attempt_dir / "ray_token"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token)
        # Ray and its jobs read the file: a token in a variable would be shown by all that lists variables.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.pop("RAY_AUTH_TOKEN", None)
        return token

    def _phase(self, name: str, text: str) -> None:
        self.phases[name] = time.time()
        say(f"{text} after {self.phases[name] - self.phases['environment']:.1f} s")

    def _wait_until_joined(self) -> dict[str, str]:
        """Wait until every node is there with its GPUs; node -> IP."""
        minutes = self.settings["ready_minutes"]
        deadline = time.monotonic() + minutes * 60
        next_word = time.monotonic() + STILL_WAITING_SECONDS
        while True:
            try:
                rows = self.dashboard.nodes()
            except NoAnswer:
                rows = []
            gone = ray_health.missing(rows, self.nodes, self.settings["gpus_per_node"])
            if self.head not in gone and "head_up" not in self.phases:
                self._phase("head_up", "head up")
            if not gone:
                self._phase("workers_joined", f"all {len(self.nodes)} nodes joined")
                return {row["node_name"]: row["node_ip"] for row in rows}
            reports = self.reports.read()
            self._end_if(ray_health.failed(reports, "not_started") or ray_health.dead(rows, self.nodes))
            if self.step.poll() is not None:
                raise Ending(ray_health.step_ended(self.step.returncode, reports))
            if time.monotonic() > deadline:
                raise Ending(ray_health.not_joined(gone, reports, len(self.nodes), minutes))
            if time.monotonic() > next_word:
                next_word += STILL_WAITING_SECONDS
                joined = len(self.nodes) - len(gone)
                say(f"{joined} of {len(self.nodes)} nodes joined; waiting for {' '.join(gone)}")
            time.sleep(START_POLL_SECONDS)

    def _test(self) -> None:
        """Who has no token is refused, and every raylet can be reached from here."""
        for token, wanted in ((None, 401), ("0" * 64, 403)):
            try:
                status = self.dashboard.status("/api/jobs/", token)
            except NoAnswer as error:
                told = f"the dashboard on {self.head} does not answer: {error}"
                raise Ending(Verdict("test_failed", told, (self.head,))) from error
            if status != wanted:
                kind = "a wrong" if token else "no"
                told = f"with {kind} token the dashboard answers HTTP {status}, not {wanted}: it is not protected"
                raise Ending(Verdict("test_failed", told, (self.head,), retry=False))
        reports = self.reports.read()
        known = [node for node in self.nodes if "block" in reports.get(node, {})]  # NFS may be a little late
        for node in known:
            report = reports[node]
            raylet = f"{report['ip']}:{ray_ports.ports(report['block'])['node_manager']}"
            if not ray_network.answers(raylet):
                told = f"{self.head} cannot connect to Ray on {node} at {raylet}; check the nodes' network"
                raise Ending(Verdict("test_failed", told, (node,)))
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
        write_json(self.attempt_dir / "cluster.json", cluster)
        say(f"ready: {len(self.nodes)} nodes, {cluster['total_gpus']} GPUs, dashboard {self.dashboard.url}")

    def _watch(self) -> None:
        watch = Watch(self.nodes, time.monotonic(), self.settings.get("idle_minutes"))
        while True:
            self._end_if(watch.look(self._look()))
            time.sleep(CHECK_SECONDS)

    def _look(self) -> Seen:
        error, rows, is_busy = None, None, None
        try:
            self.dashboard.check_gcs()
            rows = self.dashboard.nodes()
            if self.settings.get("idle_minutes") is not None:
                is_busy = ray_health.busy(self.dashboard.jobs())
        except NoAnswer as no_answer:
            error = str(no_answer)
            say(f"warning: Ray on {self.head} does not answer: {error}")
        code = self.step.poll()
        return Seen(time.monotonic(), code, self.reports.read(), error, rows, is_busy)

    def _end_if(self, verdict: Verdict | None) -> None:
        if verdict is not None:
            raise Ending(verdict)

    def stop(self, seconds: float) -> None:
        """End Ray on all nodes, and come back soon.

        Args:
            seconds: how long to wait for them.
        """
        if self.step is None or self.step.poll() is not None:
            return
        # srun hands USR1 on to its tasks, which then clean up; on TERM it has them killed (measured, 22.05).
        self.step.send_signal(signal.SIGUSR1)
        try:
            self.step.wait(seconds)
        except subprocess.TimeoutExpired:
            say("not every node has stopped in time; Slurm ends the rest with the job")
            self.step.kill()  # where Slurm does without cgroups, it would outlive the job, waiting for its nodes


def host_names(node_list: str) -> list[str]:
    """Names in a Slurm node list, in its order."""
    argv = ["scontrol", "show", "hostnames", node_list]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    return parse_host_names(done.stdout)


def parse_host_names(output: str) -> list[str]:
    """Output of `scontrol show hostnames`: one name a line.

    Raises:
        ValueError: there is none.
    """
    names = output.split()
    if not names:
        raise ValueError("`scontrol show hostnames` gave no name")
    return names


def forget_earlier_life(attempt_dir: Path) -> None:
    """Remove what this job left when it ran before (requeue): it would be taken for today's."""
    files = [attempt_dir / name for name in ("cluster.json", "reason.json", "ray_token")]
    for path in [*files, *(attempt_dir / "ray_nodes").glob("*.json")]:
        path.unlink(missing_ok=True)


def _started(attempt_dir: Path) -> float:
    return (read_json(attempt_dir / "started.json") or {}).get("started") or time.time()


def main() -> int:
    """Entry point; the exit code is the job's."""

    def terminate(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    attempt_dir = Path(os.environ["ATTEMPT_DIR"])
    forget_earlier_life(attempt_dir)
    guard = Guard(attempt_dir)
    try:
        guard.run(sys.argv[1:])
    except Terminated:
        say("Slurm ends this job: stopping Ray")
        guard.stop(TERMINATED_SECONDS)
        return 128 + signal.SIGTERM
    except Ending as ending:
        verdict = ending.verdict
    except RuntimeError as error:  # no address, no free port
        verdict = Verdict("cannot_start", str(error))
    except Exception as error:
        traceback.print_exc()
        verdict = Verdict("internal_error", f"{type(error).__name__}: {error}")
    try:
        say(f"{'ending' if verdict.exit_code == 0 else 'error'}: {verdict.reason}")
        write_json(attempt_dir / "reason.json", verdict.as_json())
        guard.stop(STOP_SECONDS)
    except Terminated:
        pass  # Slurm ends the nodes by itself; the verdict stands
    return verdict.exit_code


if __name__ == "__main__":
    sys.exit(main())
