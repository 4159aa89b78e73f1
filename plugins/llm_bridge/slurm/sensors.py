"""Wait for a Slurm job that another task submitted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator

from llm_bridge.config.hang import Hang, OnHang
from llm_bridge.failures.decision import with_policy
from llm_bridge.failures.errors import SlurmJobFailed
from llm_bridge.slurm.explain import explain_slurm
from llm_bridge.slurm.info import JobInfo
from llm_bridge.slurm.triggers import SlurmJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class SlurmJobSensor(BaseSensorOperator):
    """Wait until a job has ended, its output live in this task's log; the job itself is left alone.

    :param submitted: what ``SlurmSubmitOperator(wait=False)`` returned, usually ``submit.output``. (templated)
    :param timeout: seconds after which the sensor fails; the job goes on.
    :param deferrable: False waits in the worker.
    :param hang_minutes: without output, while the job runs, after which it counts as hung; None for never. What the
        job's own description says of hangs is for the task that submitted it.
    :param on_hang: ``report``, which tells it (include/alerts.yaml) and goes on waiting; nothing else.
    :returns: the job's ``result.json``, if it wrote one.
    :raises ValueError: ``on_hang="retry"``: the job is not this task's to end, and a retry would find it ended.
    :raises SlurmJobFailed: the job ended in any state but COMPLETED.
    """

    template_fields: Sequence[str] = ("submitted",)
    ui_color = "#d7e8f5"

    def __init__(
        self,
        *,
        submitted: Any,
        deferrable: bool = True,
        hang_minutes: float | None = None,
        on_hang: OnHang = "report",
        **kwargs: Any,
    ) -> None:
        super().__init__(**with_policy(kwargs))
        if on_hang == "retry":
            raise ValueError(
                f"task {self.task_id!r}: on_hang='retry': SlurmJobSensor cannot submit the job of another task again. "
                "Use 'report', or let SlurmSubmitOperator(wait=True, on_hang='retry') wait for its own job"
            )
        self.submitted = submitted
        self.deferrable = deferrable
        self.hang = Hang.of(hang_minutes, on_hang)

    def execute(self, context: Context) -> Any:
        trigger = SlurmJobTrigger(
            cluster=self.submitted["cluster"],
            job_id=self.submitted["job_id"],
            directory=self.submitted["directory"],
            deadline=time.time() + self.timeout,
            cancel_on_kill=False,
            hang=self.hang.model_dump() if self.hang else None,
        )
        if self.deferrable:
            self.defer(trigger=trigger, method_name="execute_complete")
        return self.execute_complete(context, asyncio.run(trigger.outcome()))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """The job has ended."""
        info = JobInfo(**event["info"]) if event["info"] else None
        if info is None or not info.meaning.good:
            # The job belongs to another task: nothing here submits it again.
            told = explain_slurm(context, self, event, None)
            raise SlurmJobFailed(event, told)
        return event["result"]
