"""DAGs of tests/notifications. DAG "alerting" fails while the file ALERTS_FIXED does not exist."""

import os
import time
from datetime import datetime, timedelta
from pathlib import Path

from airflow.sdk import DAG, task

from llm_bridge import notifications
from llm_bridge.operators.exceptions import SlurmJobFailed
from llm_bridge.pipeline.check import CheckOperator
from llm_bridge.slurm.events import EndReason, HangReport, SlurmJobEvent
from llm_bridge.slurm.status import JobInfo

late = notifications.deadline_alert("late")

with DAG("alerting", schedule=None, default_args={"retries": 0, **notifications.for_tasks()}):

    @task
    def train() -> None:
        if not Path(os.environ["ALERTS_FIXED"]).exists():
            raise RuntimeError("CUDA out of memory {{ 7 * 7 }}\nsecond line")

    @task
    def merge() -> None:
        pass

    @task
    def down() -> None:
        if not Path(os.environ["ALERTS_FIXED"]).exists():
            raise RuntimeError("the teardown failed too")

    @task(trigger_rule="all_done", **notifications.for_last_task())
    def summary(ti=None) -> None:
        states = ti.get_task_states(dag_id=ti.dag_id, task_ids=["train"], run_ids=[ti.run_id])[ti.run_id]
        if "failed" in states.values():
            raise RuntimeError("the run failed in train")

    first, last = train(), down().as_teardown()
    first >> merge() >> last
    first >> last
    last >> summary()

# Airflow has two retries for it, as in the post-training DAG.
with DAG(
    "refused",
    schedule=None,
    params={"recipe": "wrong"},
    default_args={"retries": 2, **notifications.for_tasks()},
):
    CheckOperator(task_id="check")

with DAG("hanging", schedule=None, default_args=notifications.for_tasks()):

    @task(retries=1, retry_delay=timedelta(seconds=1))
    def hang() -> None:
        hang = HangReport("30 min", nodes="gpu95", stacks=("gpu95: stuck",), ended=True)
        raise SlurmJobFailed(
            SlurmJobEvent(
                job_id="7",
                cluster="big",
                directory="/w/a",
                end=EndReason.HUNG,
                info=JobInfo("7", "CANCELLED", signal=15, nodes="gpu95"),
                notice=hang.notice,
                hang=hang,
            )
        )

    hang()

with DAG("late", schedule=None, start_date=datetime(2026, 1, 1), deadline=late):

    @task
    def sleep() -> None:
        time.sleep(90)

    sleep()
