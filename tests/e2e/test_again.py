"""A run whose PPO failed comes to success, whichever of its tasks Airflow clears; SFT is not trained again.

SFT and PPO share one allocation here (the recipe's `allocation`).
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from testing.waiting import until

DAG = "nightly_tiny"
PPO_TASKS = ["ppo.ray_up", "ppo.submit", "ppo.wait", "ppo.ray_down"]


class Run:
    """The run that the scheduler makes as soon as the DAG is turned on."""

    def __init__(self, stack: Any) -> None:
        self.stack, self.api = stack, stack.api
        stack.ready(DAG)
        found = until(lambda: self.api.ask("GET", f"/api/v2/dags/{DAG}/dagRuns")["dag_runs"], 60)
        self.run_id, self.night = found[0]["dag_run_id"], found[0]["logical_date"]
        self.path = f"/api/v2/dags/{DAG}/dagRuns/{self.run_id}"
        self.sft: dict[str, Any] = {}

    @property
    def directory(self) -> str:
        return str(self.api.xcom(DAG, self.run_id, "check")["directory"])

    def wait(self, state: str, seconds: float) -> None:
        found = self.api.wait(DAG, self.run_id, seconds)
        assert found == state, {
            task: self.log(task)[-2000:] for task, s in self.states().items() if s == "failed"
        }

    def states(self) -> dict[str, str]:
        return dict(self.stack.states(DAG, self.run_id))

    def tries(self, task_id: str) -> int:
        return next(t["try_number"] for t in self.api.tasks(DAG, self.run_id) if t["task_id"] == task_id)

    def job(self, task_id: str) -> dict[str, str]:
        return self.api.xcom(DAG, self.run_id, task_id, "slurm_job")

    def log(self, task_id: str) -> str:
        return str(self.stack.log(DAG, self.run_id, task_id))

    def shell(self, command: str) -> str:
        """A command on the login node, in the run's directory."""
        argv = ["bash", "-c", f"cd '{self.directory}' && {command}"]
        return str(self.stack.cluster.run("login", argv, user="svc").stdout).strip()


@pytest.fixture(scope="module")
def failed(stack: Any) -> Run:
    """A run that lost PPO's allocation after the first of its two steps."""
    run = Run(stack)
    until(lambda: run.states().get("check") == "success", 120)
    until(lambda: run.shell("cat ppo/checkpoints/latest_checkpointed_iteration.txt") == "1", 1500)
    assert run.job("ppo.ray_up") == run.job("sft.train")
    stack.cluster.run("ctl", ["scancel", run.job("ppo.ray_up")["job_id"]])
    run.wait("failed", 600)
    run.sft = run.job("sft.train") | {
        "made": run.shell("find sft/checkpoints -type f -printf '%p %T@\\n' | sort")
    }
    return run


def test_the_failure_names_the_slurm_job_and_what_comes_next(failed: Run) -> None:
    job_id = failed.job("ppo.ray_up")["job_id"]
    said = failed.log("ppo.wait")
    assert f"lost its cluster: Slurm job {job_id} on cluster 'test' was cancelled: CANCELLED" in said
    assert f"{failed.directory}/ppo/ray-1/output.log" in said
    assert "it resumes from its newest complete checkpoint" in said


def test_clear_only_failed_brings_it_to_success_on_a_ray_cluster_of_its_own(failed: Run) -> None:
    """Airflow then clears neither the setup that made the cluster nor the teardown that would end it."""
    failed.api.ask("POST", f"{failed.path}/clear", json={"dry_run": False, "only_failed": True})
    failed.wait("success", 1500)
    assert [failed.tries(task) for task in PPO_TASKS] == [1, 1, 2, 1]
    assert failed.tries("sft.train") == 1
    assert "resuming from step 1" in failed.log("ppo.wait")
    assert failed.job("ppo.wait")["job_id"] != failed.job("ppo.ray_up")["job_id"]
    result = failed.api.xcom(DAG, failed.run_id, "ppo.wait")
    assert (result["status"], result["result"]["step"]) == ("SUCCEEDED", 2)
    assert failed.stack.queue() == []


def test_backfill_of_failed_runs_brings_it_to_success_without_training_sft_again(failed: Run) -> None:
    """A backfill clears every task of the run."""
    failed.shell(
        "rm -r ppo/checkpoints/global_step_2 ppo/stage_result.json; echo 1 > ppo/checkpoints/latest_*.txt"
    )
    failed.api.fail(DAG, failed.run_id)
    dates = ["--from-date", failed.night, "--to-date", failed.night]
    command = ["backfill", "create", "--dag-id", DAG, *dates, "--reprocess-behavior", "failed"]
    environment = failed.stack.airflow.environment()
    subprocess.run([sys.executable, "-m", "airflow", *command], env=environment, check=True, timeout=300)
    until(lambda: failed.api.run_state(DAG, failed.run_id) != "failed", 120)
    failed.wait("success", 1500)
    assert failed.tries("sft.train") == 2 and "nothing to do" in failed.log("sft.train")
    assert failed.job("sft.train")["job_id"] == failed.sft["job_id"]
    assert failed.shell("find sft/checkpoints -type f -printf '%p %T@\\n' | sort") == failed.sft["made"]
    result = failed.api.xcom(DAG, failed.run_id, "ppo.wait")
    assert (result["status"], result["result"]["step"]) == ("SUCCEEDED", 2)
    assert failed.job("ppo.ray_up")["directory"].endswith("/ppo/attempt-1")
    assert failed.stack.queue() == []
