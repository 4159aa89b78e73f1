"""Slurm, PostgreSQL and Airflow, all real, and what the tests do with them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testing.airflow import free_port
from testing.airflow_api import ApiError
from testing.local_cluster import LocalCluster
from testing.paths import PLUGINS
from testing.stack import LocalStack
from testing.waiting import until
from tests.chaos.airflow import FragileAirflow
from tests.chaos.ledger import Ledger

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


# How Airflow logs a try that the task's own code has failed.
FAILED_TRY = ("Task failed with exception", "Task exited")


class ChaosStack(LocalStack):
    """Everything that a test talks to.

    Args:
        folder: for Airflow's home and the like.
    """

    airflow: FragileAirflow

    def __init__(self, folder: Path) -> None:
        cluster = LocalCluster("chaos", ssh_port=22722, min_job_age=FORGET_SECONDS)
        super().__init__(folder, cluster, dags=HERE / "dags", port=8280)
        for file in (self.site.include / "clusters").iterdir():
            file.unlink()
        for name, seconds in CLUSTERS.items():
            self.site.write_cluster(name, self._values(name, seconds))
        self.ledger = Ledger(self.cluster, folder / "airflow" / "logs")
        self.plans = folder / "plans"
        self.plans.mkdir(parents=True)
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.environment |= {
            **SOONER,
            "TMPDIR": str(self.temporary),
            "CHAOS_LEDGER": str(self.ledger.file),
            "CHAOS_PLANS": str(self.plans),
            "PYTHONPATH": f"{HERE / 'inject'}:{PLUGINS}",
        }

    def leave_session_process(self) -> None:
        """Make the next task start a session process (``remote/session_process.py``)."""
        for file in self.temporary.glob("*/session-*.sock"):
            file.unlink()

    def _values(self, name: str, seconds: float) -> dict[str, Any]:
        return {
            "description": name,
            "ssh_conn_id": "slurm_local",
            "workspace": str(self.cluster.workspace),
            "partition": "main",
            "gpus_per_node": 8,
            "poll_seconds": seconds,
        }

    def start(self) -> None:
        super().start()
        for dag in ("job", "once", "storm", "sensor", "run_limit", "task_limit", "sweep"):
            self.api.wait_for_dag(dag)

    def start_services(self) -> None:
        self.ledger.make()

    def make_airflow(self, home: Path, environment: dict[str, str]) -> FragileAirflow:
        return FragileAirflow(
            home,
            HERE / "dags",
            PLUGINS,
            env=environment,
            port=free_port(8280),
            database_url=self.postgres.url,
            parallelism=8,
        )

    def stop(self) -> None:
        with contextlib.suppress(AttributeError):
            self.airflow.crash()
        super().stop()

    # ---- what a user does

    def task(self, dag: str, run: str, task: str = "job") -> dict[str, Any]:
        """The task instance as the API has it; empty where it does not answer."""
        with contextlib.suppress(ApiError):
            return next((t for t in self.api.tasks(dag, run) if t["task_id"] == task), {})
        return {}

    def finished(self, dag: str, *runs: str, seconds: float = 600) -> dict[str, str]:
        """Wait for the ends of runs; run -> state."""
        return {run: self.api.wait(dag, run, seconds) for run in runs}

    # ---- what the cluster says

    def began(self, run: str, number: int = 1) -> str:
        """Wait until user code of a run's attempt runs and its task waits for it; the job's id."""
        job_id = until(lambda: next(iter(self.ledger.began(run, number)), None), 240)
        return str(job_id)

    def deferred(self, dag: str, *runs: str) -> None:
        """Wait until the tasks of runs wait in the triggerer."""
        for run in runs:
            until(lambda run=run: self.task(dag, run).get("state") == "deferred", 240)

    def followed(self, dag: str, *runs: str) -> None:
        """Wait until a triggerer follows the jobs of runs.

        A task that is marked in the second between its deferral and that has nobody who could cancel its job: Airflow
        drops the trigger unseen. Then the sweep does it.
        """
        self.deferred(dag, *runs)
        for run in runs:
            number = self.task(dag, run)["try_number"]
            until(
                lambda run=run, number=number: any(
                    row.attempt == number and re.match(r"Slurm job \d+ runs", row.text)
                    for row in self.ledger.rows(run)
                ),
                60,
            )

    def shown(self, run: str, text: str, seconds: float = 120, **which: Any) -> None:
        """Wait until a run's task log holds a text."""
        until(lambda: any(text in row.text for row in self.ledger.rows(run, **which)), seconds)

    def check(self, dag: str, *runs: str, attempts: int = 1, tries: int = 1) -> None:
        """Runs have ended well, after so many submissions and tries, with every line of output in their logs once.

        A try that Airflow ended by itself does not count, as it says nothing of llm-bridge: on a busy machine the
        worker's calls to the API server come too late ("state mismatch", "heartbeat timeout"). An attempt more does.
        """
        assert self.finished(dag, *runs) == dict.fromkeys(runs, "success")
        for run in runs:
            found = self.ledger.attempts(run)
            number = self.task(dag, run)["try_number"]
            failed = {row.attempt for row in self.ledger.rows(run) if row.text in FAILED_TRY}
            assert (len(found), len(failed) + 1) == (attempts, tries), self.ledger.story(run, number)
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
