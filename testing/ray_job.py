"""Submit ray_cluster.sh.j2 to a local Slurm cluster and observe the job."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_bridge.config.cluster import Cluster
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm.batch_script import files
from llm_bridge.slurm.spec import SlurmJob
from testing.local_cluster import LocalCluster
from testing.local_cluster.accounts import USERS

ENVIRONMENT = "/var/tmp/llm-bridge/cluster-env"
# Runs in a host's namespaces: METHOD URL TOKEN BODY; prints the status and then the answer.
HTTP = """
import sys, urllib.error, urllib.request
method, url, token, body = sys.argv[1:]
request = urllib.request.Request(url, body.encode() or None, {"Content-Type": "application/json"}, method=method)
if token: request.add_header("Authorization", "Bearer " + token)
try: answer = urllib.request.urlopen(request, timeout=20)
except urllib.error.HTTPError as error: answer = error
print(answer.status); print(answer.read().decode())
"""


def cluster_file(workspace: Path, variables: dict[str, str], **more: Any) -> Cluster:
    """Return a cluster file for the local cluster."""
    values = {
        "name": "raytest",
        "ssh_conn_id": None,
        "workspace": str(workspace),
        "gpus_per_node": 8,
        "cpus_per_task": 8,
        "mem": "8000",
        "device": "cpu",
        "environment": {"venv": ENVIRONMENT},
        "variables": {"RAY_memory_monitor_refresh_ms": "0", "RAY_worker_niceness": "0"} | variables,
        "network_interface": "eth0",
    }
    return Cluster.model_validate(values | more)


class RayJob:
    """Job of one Ray cluster, submitted as Airflow does."""

    def __init__(
        self,
        slurm: LocalCluster,
        name: str,
        nodes: list[str],
        variables: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.slurm, self.nodes, self.variables = slurm, nodes, variables or {}
        self.directory = slurm.workspace / name / attempt_dir.attempt_name(1)
        self.settings = {
            "nodes": len(nodes),
            "gpus_per_node": 8,
            "device": "cpu",
            "cpus_per_node": None,
            "object_store_gib": 0.3,
            "temp_dir": "/tmp/ray",
            "ready_minutes": 3,
            "idle_minutes": None,
        } | settings
        self.allocated_gpus = self.settings["gpus_per_node"]
        self.job_id = ""

    def submit(self) -> RayJob:
        """Write the attempt's directory and run sbatch."""
        job = SlurmJob.model_validate(
            {
                "cluster": "raytest",
                "template": "ray_cluster",
                "settings": self.settings,
                "directory": str(self.directory.parent),
                "resources": {
                    "nodes": len(self.nodes),
                    "gpus_per_node": self.allocated_gpus,
                    "nodelist": ",".join(self.nodes),
                    "options": {"no-requeue": None},
                },
            }
        )
        shutil.rmtree(self.directory, ignore_errors=True)
        cluster = cluster_file(self.slurm.workspace, self.variables)
        shipped = files(job.resolve(cluster), str(self.directory))
        self.directory.mkdir(parents=True)
        for name, text in shipped.texts.items():
            (self.directory / name).write_text(text)
        for name, data in shipped.binaries.items():
            (self.directory / name).write_bytes(data)
        for path in [self.directory.parent, self.directory, *self.directory.rglob("*")]:
            shutil.chown(path, USERS["svc"], USERS["svc"])
        argv = [
            "sbatch",
            "--parsable",
            f"--chdir={self.directory}",
            f"--output={self.directory}/{attempt_dir.OUTPUT}",
        ]
        done = self.slurm.run("login", [*argv, str(self.directory / attempt_dir.SCRIPT)], user="svc")
        assert done.returncode == 0, done.stderr
        self.job_id = done.stdout.strip()
        return self

    @property
    def log(self) -> str:
        """Output of the job so far."""
        path = self.directory / attempt_dir.OUTPUT
        return path.read_text() if path.exists() else ""

    def json(self, name: str) -> dict[str, Any]:
        """Return the content of a JSON file in the attempt's directory."""
        content: dict[str, Any] = json.loads((self.directory / name).read_text())
        return content

    def wait(self, what: str, seen: Callable[[], Any], seconds: float) -> Any:
        """Poll until `seen` returns a true value, and return it.

        Raises:
            AssertionError: It does not within `seconds`; the message has `what` and the job's log.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := seen():
                return found
            time.sleep(0.2)
        raise AssertionError(f"no {what} in {seconds} s; log of the job:\n{self.log}")

    def wait_ready(self) -> dict[str, Any]:
        """Wait for cluster.json and return its content."""

        def look() -> bool:
            assert not (self.directory / attempt_dir.OUTCOME).exists(), f"the job has ended:\n{self.log}"
            return (self.directory / attempt_dir.CLUSTER).exists()

        self.wait("cluster.json", look, 150)
        return self.json(attempt_dir.CLUSTER)

    def wait_over(self, seconds: float) -> dict[str, Any]:
        """Wait for outcome.json and return its content."""
        self.wait("outcome.json", lambda: (self.directory / attempt_dir.OUTCOME).exists(), seconds)
        return self.json(attempt_dir.OUTCOME)

    def state(self) -> str:
        """Return the job's state in Slurm."""
        done = self.slurm.run("ctl", ["scontrol", "show", "job", "-o", self.job_id])
        return next((pair[9:] for pair in done.stdout.split() if pair.startswith("JobState=")), "")

    def cancel(self) -> None:
        """Cancel the job, and wait until it has left the queue."""
        self.slurm.run("login", ["scancel", self.job_id], user="svc")
        self.wait("end of the job", self.gone, 60)

    def gone(self) -> bool:
        """Return whether the job has left the queue."""
        return not self.slurm.run("ctl", ["squeue", "-h", "-j", self.job_id]).stdout.strip()

    def request(self, method: str, path: str, token: str | None = None, body: Any = None) -> tuple[int, str]:
        """Send a request to the dashboard from the login host; return status and body."""
        url = self.json(attempt_dir.CLUSTER)["dashboard"] + path
        arguments = [method, url, token or "", json.dumps(body) if body is not None else ""]
        done = self.slurm.run("login", ["/usr/bin/python3", "-c", HTTP, *arguments], user="svc")
        assert done.returncode == 0, done.stderr
        status, _, text = done.stdout.partition("\n")
        return int(status), text.rstrip("\n")

    def token(self) -> str:
        """Return the cluster's token."""
        return (self.directory / attempt_dir.RAY_TOKEN).read_text()

    def run_ray_job(self, code: str, seconds: float = 90) -> tuple[dict[str, Any], str]:
        """Submit `python -c CODE` to the Jobs API, wait for its end, and return its info and output."""
        body = {"entrypoint": f"python -c {shlex.quote(code)}"}
        status, text = self.request("POST", "/api/jobs/", self.token(), body)
        assert status == 200, text
        path = f"/api/jobs/{json.loads(text)['submission_id']}"
        info: dict[str, Any] = {}

        def over() -> bool:
            info.update(json.loads(self.request("GET", path, self.token())[1]))
            return info["status"] in ("SUCCEEDED", "FAILED", "STOPPED")

        self.wait("end of the Ray job", over, seconds)
        return info, json.loads(self.request("GET", f"{path}/logs", self.token())[1])["logs"]

    def processes(self, node: str) -> list[str]:
        """Return the processes of the jobs' user on a node, a line `PID COMMAND` each."""
        return self.slurm.run(node, ["ps", "-u", "svc", "-o", "pid=,args="]).stdout.splitlines()

    def kill(self, node: str, pattern: str, signal: str = "KILL") -> None:
        """Send a signal to the processes on a node whose command line matches a pattern."""
        argv = ["pkill", f"-{signal}", "-f", pattern]  # inside the node's own process namespace
        done = self.slurm.run(node, argv)
        assert done.returncode == 0, f"no process {pattern} on {node}: {self.processes(node)}"
