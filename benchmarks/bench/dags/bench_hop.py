"""DAGs of `make bench`: a chain of tiny jobs, and a chain of deferrable tasks that do nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import DAG, BaseOperator, timezone
from airflow.sdk.bases.operator import chain

from llm_bridge.operators.slurm import SlurmSubmitOperator

# Seconds that the jobs of the chain take: stages shorter than five, and longer ones.
SECONDS = (1, 1, 1, 1, 8, 8, 8, 8)
WAIT_SECONDS = 8


class Wait(BaseOperator):
    """Task that defers until a moment, and returns when it began and what the moment was."""

    def execute(self, context: Any) -> None:
        """Defer."""
        now = timezone.utcnow()
        moment = now + timedelta(seconds=WAIT_SECONDS)
        context["ti"].xcom_push(key="times", value=[now.timestamp(), moment.timestamp()])
        self.defer(trigger=DateTimeTrigger(moment), method_name="done")

    def done(self, context: Any, event: Any = None) -> None:
        """End."""


with DAG("bench_jobs", schedule=None):
    chain(
        *(
            SlurmSubmitOperator(
                task_id=f"job{number}", cluster="bench", script=f"#!/bin/bash\nsleep {seconds}\n"
            )
            for number, seconds in enumerate(SECONDS)
        )
    )

with DAG("bench_nothing", schedule=None):
    chain(*(Wait(task_id=f"wait{number}") for number in range(len(SECONDS) // 2)))
