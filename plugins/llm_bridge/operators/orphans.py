"""Cancel orphans, Slurm jobs whose DAG run has ended: the last safeguard after all other cancellations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowRuntimeError, AirflowSkipException

from llm_bridge.exceptions import ClusterUnavailable, ConfigError, NoConnection
from llm_bridge.remote.messages import ActiveJob
from llm_bridge.remote.shared_transport import run_in_task
from llm_bridge.slurm.cancellation import cancel_and_wait, close_attempts
from llm_bridge.slurm.client import open_client

if TYPE_CHECKING:
    from airflow.sdk import Context

ENDED_RUN_STATES = {"success", "failed"}


class ReapOrphansOperator(BaseOperator):
    """Cancel this Airflow's jobs on one cluster whose DAG run has ended.

    A sweep cancels only orphans that an earlier sweep has marked; a new orphan is marked and logged. Jobs of runs that
    are not in this Airflow's database are never touched: another Airflow may share the workspace.

    Args:
        cluster: Name of a file in ``include/clusters``. (templated)
        report_only: Log the orphans, without marking or cancelling them. (templated)

    Returns:
        ``{"cancelled", "seen", "unknown"}``, a list of job ids each.

    Raises:
        AirflowSkipException: The cluster is unavailable, or Airflow has no connection to it.
        ConfigError: ``report_only`` is neither true nor false.
    """

    template_fields: Sequence[str] = ("cluster", "report_only")
    ui_color = "#f0e4d4"

    def __init__(self, *, cluster: str, report_only: Any = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.report_only = report_only

    def execute(self, context: Context) -> dict[str, list[str]]:
        """Mark new orphans, and cancel the orphans that were marked before."""
        ti: Any = context["ti"]
        if str(self.report_only) not in ("True", "False"):  # a template renders to text
            raise ConfigError(
                f"task {self.task_id!r}: report_only is {self.report_only!r}: use True or False; nothing was cancelled"
            )
        dry_run = str(self.report_only) == "True"
        try:
            jobs = run_in_task(list_active(self.cluster))
        except ClusterUnavailable as error:
            raise AirflowSkipException(
                f"cluster {self.cluster} unavailable; the next sweep tries again: {error}"
            ) from None
        except NoConnection as error:
            # A site that uses only its own cluster still has the demo's cluster file: no alert every five minutes.
            raise AirflowSkipException(f"cluster {self.cluster} skipped: {error}") from None
        found: dict[str, list[str]] = {"cancelled": [], "seen": [], "unknown": []}
        to_mark: list[str] = []
        stages: set[str] = set()
        for job in jobs:
            owner = job.owner
            name = f"Slurm job {job.job_id} ({job.state}) of {owner['dag_id']}, run {owner['run_id']}"
            try:
                state = ti.get_dagrun_state(dag_id=owner["dag_id"], run_id=owner["run_id"])
                state = getattr(state, "value", state)  # str() of an enumeration is its name
            except AirflowRuntimeError:
                self.log.warning("%s: this Airflow has no such run; not cancelled", name)
                found["unknown"].append(job.job_id)
                continue
            if state not in ENDED_RUN_STATES:
                self.log.info("%s: the run is %s", name, state)
            elif job.orphan_seen_s is None or dry_run:
                action = "dry run, not marked" if dry_run else "the next sweep cancels it"
                self.log.warning("%s: orphan, the run has ended (%s); %s", name, state, action)
                found["seen"].append(job.job_id)
                to_mark.append(job.directory)
            else:
                self.log.warning(
                    "%s: orphan, the run has ended (%s), first seen %.0f s ago; cancelling it",
                    name,
                    state,
                    job.orphan_seen_s,
                )
                found["cancelled"].append(job.job_id)
                stages.add(str(PurePosixPath(job.directory).parent))
        for stage in sorted(stages):  # closed as well: that removes the secrets of its attempts
            run_in_task(close_attempts(self.cluster, stage))
        if found["cancelled"]:
            left = run_in_task(cancel_and_wait(self.cluster, found["cancelled"]))
            if stuck := [job_id for job_id, info in left.items() if not info.is_completing]:
                self.log.warning(
                    "Slurm job %s has not ended after scancel; the next sweep cancels it again",
                    ", ".join(stuck),
                )
        if to_mark and not dry_run:
            run_in_task(list_active(self.cluster, to_mark))
        self.log.info("%s", ", ".join(f"{len(ids)} {what}" for what, ids in found.items()))
        return found


async def list_active(cluster_name: str, seen_without_run: Sequence[str] = ()) -> Sequence[ActiveJob]:
    """Return llm-bridge's jobs that wait or run on a cluster, as :meth:`SlurmClient.list_active`.

    Args:
        cluster_name: Name of the cluster file.
        seen_without_run: Attempt directories to mark as orphans.
    """
    async with open_client(cluster_name) as client:
        return await client.list_active(seen_without_run)
