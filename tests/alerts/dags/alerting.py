"""Airflow DAGs of tests/alerts. "alerting" fails while the variable of its processes names a file that is not there."""

import os
import time
from datetime import datetime, timedelta
from pathlib import Path

from airflow.sdk import DAG, task

from llm_bridge import alerts
from llm_bridge.failures.errors import SlurmJobFailed

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

with DAG("hanging", schedule=None, default_args=alerts.for_tasks()):

    @task(retries=1, retry_delay=timedelta(seconds=1))
    def hang() -> None:
        info = {"state": "CANCELLED", "exit_code": 0, "signal": 15, "reason": "", "nodes": "gpu95"}
        found = {"for": "30 min", "nodes": "gpu95", "step": "", "stacks": ["gpu95: stuck"], "ended": True}
        words = {
            "ready": False,
            "notice": "hang: no output",
            "result": None,
            "reason": None,
            "last_lines": [],
        }
        job = {"job_id": "7", "cluster": "big", "directory": "/w/a"}
        raise SlurmJobFailed({**job, **words, "info": info, "hang": found})

    hang()

with DAG("late", schedule=None, start_date=datetime(2026, 1, 1), deadline=late):

    @task
    def sleep() -> None:
        time.sleep(30)

    sleep()
