"""Cancel the jobs of another task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException

from llm_bridge.slurm.away import AWAY, WaitsForCluster
from llm_bridge.slurm.cancel import cancel_and_wait, close_attempts

if TYPE_CHECKING:
    from airflow.sdk import Context


class SlurmCancelOperator(WaitsForCluster):
    """Cancel whatever jobs a stage has, and see that they are gone. A teardown: it also runs after failures.

    Works from the stage's directory on the cluster instead of an XCom, so it finds the job of a task that
    died before it could say anything.

    :param stage: callable that gives ``(cluster name, stage directory, ...)`` from the task's context; there may be
        several directories.
    :raises AirflowException: a job is still there after ``patience`` seconds.
    """

    ui_color = "#f0e4d4"

    def __init__(
        self, *, stage: Callable[[Context], tuple[str, ...]], patience: float = 120, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.patience = patience

    def execute(self, context: Context) -> list[str]:
        cluster, *directories = self.stage(context)
        try:
            ids = [i for directory in directories for i in asyncio.run(close_attempts(cluster, directory))]
            if not ids:
                self.log.info("no job was ever submitted in %s", ", ".join(directories))
                return []
            left = asyncio.run(cancel_and_wait(cluster, ids, self.patience))
        except AWAY as error:
            self.wait_for(cluster, error)
        if left:
            raise AirflowException(
                f"Slurm job {', '.join(left)} on cluster {cluster!r} has not ended {self.patience:.0f} s "
                "after scancel: look at it with `scontrol show job`, it may hold GPUs"
            )
        self.log.info("gone: Slurm job %s", ", ".join(ids))
        return ids
