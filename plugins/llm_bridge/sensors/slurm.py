"""Wait for a Slurm job that another task submitted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator

from llm_bridge.config.hang import Hang, OnHang
from llm_bridge.diagnosis.explain_slurm import explain_slurm
from llm_bridge.exceptions import ConfigError
from llm_bridge.operators.base import ClusterOperator
from llm_bridge.operators.exceptions import SlurmJobFailed, fail
from llm_bridge.operators.links import WandbLink, push_wandb_link
from llm_bridge.remote.shared_transport import run_in_task
from llm_bridge.slurm.events import SlurmJobEvent
from llm_bridge.slurm.status import is_job_id
from llm_bridge.task_state import TaskState
from llm_bridge.triggers.slurm import SlurmJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class SlurmJobSensor(ClusterOperator, BaseSensorOperator):
    """Wait until a job has ended, and relay its output to this task's log; the sensor never cancels the job.

    Args:
        submitted: Output of ``SlurmSubmitOperator(wait=False)``, usually ``submit.output``. (templated)
        timeout: Seconds after which the sensor fails; the job continues.
        deferrable: False waits in the worker.
        hang_minutes: Minutes without output after which a running job counts as hung; None for never. The hang settings
            of the job's own specification apply only to the task that submitted it.
        on_hang: Only ``report``, which sends an alert (include/alerts.yaml) and continues to wait.

    Returns:
        Content of the job's result file, if it wrote one.

    Raises:
        ConfigError: ``submitted`` names no job id.
        ValueError: ``on_hang="retry"``: the job belongs to another task, and a retry would find it ended.
        SlurmJobFailed: The job ended in any state but COMPLETED.
    """

    template_fields: Sequence[str] = ("submitted",)
    ui_color = "#d7e8f5"
    operator_extra_links = (WandbLink(),)

    def __init__(
        self,
        *,
        submitted: Any,
        deferrable: bool = True,
        hang_minutes: float | None = None,
        on_hang: OnHang = "report",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if on_hang == "retry":
            raise ValueError(
                f"task {self.task_id!r}: on_hang='retry': SlurmJobSensor cannot submit the job of another task again. "
                "Use 'report', or use SlurmSubmitOperator(wait=True, on_hang='retry'), which waits for its own job"
            )
        self.submitted = submitted
        self.deferrable = deferrable
        self.hang = Hang.from_settings(hang_minutes, on_hang)

    def execute(self, context: Context) -> Any:
        """Wait for the end of the job."""
        job_id = str(self.submitted["job_id"])
        if not is_job_id(job_id):
            raise ConfigError(
                f"task {self.task_id!r}: submitted names the Slurm job {job_id!r}, but a job id is a whole number such "
                "as 12: pass what SlurmSubmitOperator(wait=False) returned"
            )
        trigger = SlurmJobTrigger(
            cluster=self.submitted["cluster"],
            job_id=job_id,
            directory=self.submitted["directory"],
            deadline=time.time() + self.timeout,
            cancel_on_kill=False,
            hang=self.hang.model_dump() if self.hang else None,
        )
        if self.deferrable:
            self.defer(trigger=trigger, method_name="execute_complete")
        return self.execute_complete(context, run_in_task(trigger.outcome()))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return the result of a job that succeeded, or raise its failure."""
        ended = SlurmJobEvent.from_json(event)
        if ended.succeeded:
            push_wandb_link(context["ti"], ended.result)
            return ended.result
        # The job belongs to another task, so it is not submitted again.
        task, delay = TaskState.from_context(context), self.delay_before_retry()
        report = run_in_task(explain_slurm(task, ended, None, retry_delay=delay))
        error = SlurmJobFailed(ended, self.push_diagnosis(context, report))
        fail(error, permanent=False, policy=self.retry_policy)
