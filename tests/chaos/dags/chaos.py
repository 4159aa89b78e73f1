"""DAGs of one Slurm job each, for tests that break what is around it. The run's conf says what the job does."""

import os
from datetime import datetime, timedelta
from pathlib import Path

from airflow.sdk import DAG

from llm_bridge.operators.orphans import ReapOrphansOperator
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.sensors.slurm import SlurmJobSensor

JOB = {
    "script": (Path(__file__).parent / "job.sh").read_text().rstrip() + "\n",
    "sbatch": {"cpus_per_task": 1, "mem": "100M", "time_limit": "60"},
}
PARAMS = {
    "ledger": os.environ["CHAOS_LEDGER"],
    "lines": 10,
    "pause": 0.5,
    "partition": "main",
    "requeue": True,
    "node": "",
    "exit_code": 0,
    "flood_mb": 0,
}


def dag(dag_id: str, **more) -> DAG:
    """A DAG that only runs when triggered; its tasks are retried soon."""
    retry = {"retries": more.pop("retries", 3), "retry_delay": timedelta(seconds=2)}
    return DAG(
        dag_id,
        schedule=None,
        start_date=datetime(2026, 1, 1),
        is_paused_upon_creation=False,
        max_active_runs=100,
        max_active_tasks=100,
        params=PARAMS,
        default_args=retry,
        **more,
    )


with dag("job"):
    SlurmSubmitOperator(task_id="job", cluster="quick", **JOB)

with dag("once", retries=0):
    SlurmSubmitOperator(task_id="job", cluster="quick", **JOB)

with dag("storm", retries=30):
    SlurmSubmitOperator(task_id="job", cluster="usual", **JOB)

with dag("sensor", retries=30):
    submit = SlurmSubmitOperator(task_id="job", cluster="usual", wait=False, **JOB)
    SlurmJobSensor(task_id="sensor", submitted=submit.output, timeout=1800)

with dag("run_limit", retries=0, dagrun_timeout=timedelta(seconds=60)):
    SlurmSubmitOperator(task_id="job", cluster="quick", **JOB)

with dag("task_limit", retries=0):
    SlurmSubmitOperator(task_id="job", cluster="quick", execution_timeout=timedelta(seconds=20), **JOB)

with dag("sweep", retries=0):
    ReapOrphansOperator(task_id="quick", cluster="quick") >> ReapOrphansOperator(
        task_id="again", cluster="quick"
    )
