"""Wait for a Ray job."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator

from llm_bridge.config.load import load_cluster
from llm_bridge.failures.errors import RayJobFailed
from llm_bridge.ray.triggers import RayJobTrigger, as_target
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.transport import CommandFailed, LoginNodeUnreachable, connect

if TYPE_CHECKING:
    from airflow.sdk import Context

# Post-training runs for days; the sensor default of Airflow (7 days) would end an honest run.
TIMEOUT_SECONDS = 30 * 24 * 3600


class RayJobSensor(BaseSensorOperator):
    """Wait until a Ray job has ended, the driver's output live in this task's log.

    Watches the Slurm allocation too, if there is one, so that the failure names the real cause ("lost a node")
    instead of "connection refused". Marking the task failed or success stops the Ray job.

    :param submitted: what ``RaySubmitJobOperator`` returned (``submit.output``). (templated)
    :param timeout: seconds after which the job is stopped and the task fails.
    :param poll_interval: seconds between two looks at the job's status; empty means the cluster file's.
    :param deferrable: False waits in the worker.
    :returns: ``{"submission_id", "status", "run_s", "result"}``; ``result`` is what the job wrote to
        ``result.json`` beside its settings, if anything.
    :raises RayJobFailed: the job ended FAILED or STOPPED, or its allocation ended.
    """

    template_fields: Sequence[str] = ("submitted",)
    ui_color = "#d5e8d4"

    def __init__(
        self, *, submitted: Any, poll_interval: float | None = None, deferrable: bool = True, **kwargs: Any
    ) -> None:
        kwargs.setdefault("timeout", TIMEOUT_SECONDS)
        super().__init__(**kwargs)
        self.submitted = submitted
        self.poll_interval = poll_interval
        self.deferrable = deferrable

    def execute(self, context: Context) -> Any:
        cluster = self.submitted.get("cluster")
        trigger = RayJobTrigger(
            target=as_target(self.submitted),
            submission_id=self.submitted["submission_id"],
            poll_seconds=self.poll_interval or (load_cluster(cluster).poll_seconds if cluster else 15),
            deadline=time.time() + self.timeout,
        )
        if self.deferrable:
            self.defer(trigger=trigger, method_name="execute_complete")
        return self.execute_complete(context, asyncio.run(trigger.outcome()))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """The job or its allocation has ended."""
        if event["status"] != "SUCCEEDED":
            # The launcher's own words, unless the allocation's end is the better reason.
            reason = event["reason"] or asyncio.run(self._read("reason.json"))
            raise RayJobFailed({**event, "reason": reason}, as_target(self.submitted))
        job = event["job"]
        run_s = ((job.get("end_time") or 0) - (job.get("start_time") or 0)) / 1000
        return {
            "submission_id": event["submission_id"],
            "status": event["status"],
            "run_s": round(run_s, 1),
            "result": asyncio.run(self._read("result.json")),
        }

    async def _read(self, name: str) -> Any:
        """A small JSON file that the job left beside its settings, or None."""
        directory = self.submitted.get("attempt_directory")
        if not directory:
            return None
        cluster = load_cluster(self.submitted["cluster"])
        async with connect(cluster) as transport:
            try:
                return json.loads(await SlurmClient(cluster, transport).read(f"{directory}/{name}"))
            except (CommandFailed, LoginNodeUnreachable):
                return None
