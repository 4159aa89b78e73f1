"""Airflow DAG of tests/alerts: fails while the variable of its processes names a file that is not there."""

import os
import time
from datetime import datetime
from pathlib import Path

from airflow.sdk import DAG, task

from llm_bridge import alerts

late = alerts.deadline("late")

with DAG("alerting", schedule=None, default_args={"retries": 0, **alerts.for_tasks()}):

    @task
    def train() -> None:
        if not Path(os.environ["ALERTS_MENDED"]).exists():
            raise RuntimeError("CUDA out of memory {{ 7 * 7 }}\nsecond line")

    @task
    def merge() -> None:
        pass

    @task
    def down() -> None:
        if not Path(os.environ["ALERTS_MENDED"]).exists():
            raise RuntimeError("the teardown failed too")

    @task(trigger_rule="all_done", **alerts.for_last_task())
    def summary(ti=None) -> None:
        states = ti.get_task_states(dag_id=ti.dag_id, task_ids=["train"], run_ids=[ti.run_id])[ti.run_id]
        if "failed" in states.values():
            raise RuntimeError("the run failed in train")

    first, last = train(), down().as_teardown()
    first >> merge() >> last
    first >> last
    last >> summary()

with DAG("late", schedule=None, start_date=datetime(2026, 1, 1), deadline=late):

    @task
    def sleep() -> None:
        time.sleep(30)

    sleep()
