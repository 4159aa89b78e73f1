"""Slurm, PostgreSQL and Airflow, all real, and what the tests do with them."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from demo.airflow import free_port
from demo.airflow_api import ApiError
from local_cluster import LocalCluster
from local_cluster.settings import state_root
from tests.chaos.airflow import FragileAirflow
from tests.chaos.ledger import Ledger
from tests.chaos.postgres import Postgres

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
# Slurm forgets an ended job after so long: much sooner than a site's, so that it happens in every test.
FORGET_SECONDS = 15
# Cluster name -> seconds between two questions to slurmctld. `usual` is what a cluster file says that says nothing.
CLUSTERS = {"quick": 3, "usual": 20}
# What else Airflow waits for minutes by default. Times only: nothing here changes what it does.
SOONER = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "25",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "15",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "15",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "3",
}


class Stack:
    """Everything that a test talks to.

    :param folder: for Airflow's home and the like.
    """

    def __init__(self, folder: Path) -> None:
        self.cluster = LocalCluster("chaos", ssh_port=22722, min_job_age=FORGET_SECONDS)
        # Not below `folder`, which user postgres may be unable to enter.
        self.postgres = Postgres(state_root() / "chaos-postgres")
        self.ledger = Ledger(self.cluster, folder / "airflow" / "logs")
        self.plans = folder / "plans"
        self.plans.mkdir(parents=True)
        self._include = self._make_include(folder / "include")
        self._home = folder / "airflow"
        self.airflow: FragileAirflow

    def start(self) -> None:
        """Start it all anew."""
        self.cluster.down(wipe=True)
        self.cluster.up()
        self.ledger.make()
        self.postgres.start()
        ssh = {
            "conn_type": "ssh",
            "host": "127.0.0.1",
            "port": self.cluster.ssh_port,
            "login": "svc",
            "extra": {"key_file": str(self.cluster.ssh_key), "known_hosts": str(self.cluster.known_hosts)},
        }
        environment = {
            **SOONER,
            "AIRFLOW_CONN_SLURM_CHAOS": json.dumps(ssh),
            "LLM_BRIDGE_INCLUDE": str(self._include),
            "CHAOS_LEDGER": str(self.ledger.file),
            "CHAOS_PLANS": str(self.plans),
            "PYTHONPATH": f"{HERE / 'inject'}:{ROOT / 'plugins'}",
        }
        self.airflow = FragileAirflow(
            self._home,
            HERE / "dags",
            ROOT / "plugins",
            env=environment,
            port=free_port(8280),
            database_url=self.postgres.url,
            parallelism=8,
        )
        self.airflow.start()
        self.api = self.airflow.api()
        for dag in ("job", "once", "storm", "sensor", "run_limit", "task_limit", "sweep"):
            self.api.wait_for_dag(dag)

    def stop(self) -> None:
        """End it all, and delete what it left on the machine."""
        with contextlib.suppress(AttributeError):
            self.airflow.crash()
            self.airflow.stop()
        self.postgres.stop()
        self.cluster.down(wipe=True)

    def _make_include(self, folder: Path) -> Path:
        shutil.copytree(ROOT / "include", folder)
        for file in (folder / "clusters").iterdir():
            file.unlink()
        for name, seconds in CLUSTERS.items():
            site = {
                "description": name,
                "ssh_conn_id": "slurm_chaos",
                "workspace": str(self.cluster.workspace),
                "partition": "main",
                "gpus_per_node": 8,
                "poll_seconds": seconds,
            }
            (folder / "clusters" / f"{name}.yaml").write_text(yaml.safe_dump(site))
        return folder

    # ---- what a user does

    def run(self, dag: str, run: str, **conf: Any) -> None:
        """Start a run."""
        self.api.trigger(dag, conf, run)

    def mark(self, dag: str, run: str, state: str, task: str = "job") -> None:
        """Mark a task."""
        path = f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances/{task}"
        self.api.ask("PATCH", path, json={"new_state": state})

    def clear(self, dag: str, run: str, task: str = "job") -> None:
        """Clear a task."""
        body = {
            "dry_run": False,
            "dag_run_id": run,
            "task_ids": [task],
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self.api.ask("POST", f"/api/v2/dags/{dag}/clearTaskInstances", json=body)

    def task(self, dag: str, run: str, task: str = "job") -> dict[str, Any]:
        """The task instance as the API has it; empty where it does not answer."""
        with contextlib.suppress(ApiError):
            return next((t for t in self.api.tasks(dag, run) if t["task_id"] == task), {})
        return {}

    def finished(self, dag: str, *runs: str, seconds: float = 600) -> dict[str, str]:
        """Wait for the ends of runs; run -> state."""
        return {run: self.api.wait(dag, run, seconds) for run in runs}

    # ---- what the cluster says

    def slurm(self, *argv: str, user: str = "svc") -> str:
        """Output of a Slurm command on the login node."""
        return self.cluster.run("login", list(argv), user=user if user != "root" else None).stdout

    def until(self, condition: Callable[[], Any], seconds: float = 60, every: float = 0.3) -> Any:
        """Wait for what ``condition`` gives, if it is anything."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s in vain for {condition}")
            time.sleep(every)
        return found

    def began(self, run: str, number: int = 1) -> str:
        """Wait until user code of a run's attempt runs and its task waits for it; the job's id."""
        job_id = self.until(lambda: next(iter(self.ledger.began(run, number)), None), 240)
        return str(job_id)

    def deferred(self, dag: str, *runs: str) -> None:
        """Wait until the tasks of runs wait in the triggerer."""
        for run in runs:
            self.until(lambda run=run: self.task(dag, run).get("state") == "deferred", 240)

    def followed(self, dag: str, *runs: str) -> None:
        """Wait until a triggerer follows the jobs of runs.

        A task that is marked in the second between its deferral and that has nobody who could cancel its job: Airflow
        drops the trigger unseen. Then the sweep does it.
        """
        self.deferred(dag, *runs)
        for run in runs:
            number = self.task(dag, run)["try_number"]
            self.until(
                lambda run=run, number=number: any(
                    row.attempt == number and re.match(r"Slurm job \d+ runs", row.text)
                    for row in self.ledger.rows(run)
                ),
                60,
            )

    def shown(self, run: str, text: str, seconds: float = 120, **which: Any) -> None:
        """Wait until a run's task log holds a text."""
        self.until(lambda: any(text in row.text for row in self.ledger.rows(run, **which)), seconds)

    def check(self, dag: str, *runs: str, attempts: int = 1, tries: int = 1) -> None:
        """Runs have ended well, after so many submissions and tries, with every line of output in their logs once."""
        assert self.finished(dag, *runs) == dict.fromkeys(runs, "success")
        for run in runs:
            found = self.ledger.attempts(run)
            assert (len(found), self.task(dag, run)["try_number"]) == (attempts, tries), run
            jobs = self.ledger.jobs()
            assert [job.job_id for job in jobs if job.key == found[-1].owner["key"]] == [found[-1].job_id]
            assert jobs[found[-1].job_id].done
            for attempt in found:
                faults = self.ledger.log_faults(run, attempt)
                assert not faults, faults[:5]

    def gone(self, job_id: str) -> bool:
        """Whether no process of the job and no entry in the queue is left."""
        return job_id not in self.slurm("squeue", "-h", "-o", "%i").split()

    def resume_nodes(self) -> None:
        """What an administrator does: Slurm drains nodes when slurmctld comes back with less than it knew."""
        self.slurm("scontrol", "update", "nodename=ALL", "state=resume", user="root")

    def end_sessions(self) -> None:
        """SIGKILL for every SSH session; sshd itself takes new ones."""
        pids = self.cluster.run("login", ["pgrep", "-f", "^sshd: svc"]).stdout.split()
        if pids:
            self.cluster.run("login", ["kill", "-KILL", *pids])

    @contextlib.contextmanager
    def without(self, *daemons: str) -> Iterator[None]:
        """The body runs while these are dead."""
        for daemon in daemons:
            self.cluster.kill(daemon)
            if daemon == "sshd":
                self.end_sessions()
        try:
            yield
        finally:
            # slurmctld will not start for the first time without slurmdbd.
            for daemon in sorted(daemons, key="slurmctld".__eq__):
                self.cluster.start(daemon)
            self.resume_nodes()
