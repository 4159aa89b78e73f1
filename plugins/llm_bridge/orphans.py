"""Find Slurm jobs whose DAG run is over, and cancel them: the last net under everything else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowRuntimeError, AirflowSkipException

from llm_bridge.config.load import load_cluster
from llm_bridge.slurm.away import AWAY
from llm_bridge.slurm.cancel import cancel_and_wait
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.transport import NoConnection, connect

if TYPE_CHECKING:
    from airflow.sdk import Context

OVER = {"success", "failed"}


class ReapOrphansOperator(BaseOperator):
    """Cancel this Airflow's jobs on one cluster whose DAG run has ended.

    A sweep cancels only what an earlier sweep has already seen without a run: the first time it says what it would
    do. Jobs of a run that this Airflow does not know are never touched: another Airflow may share the workspace.

    :param cluster: name of a file in ``include/clusters``. (templated)
    :param only_say: only say what would be cancelled. (templated)
    :returns: ``{"cancelled", "noted", "unknown"}``, job ids each.
    :raises AirflowSkipException: the cluster cannot be asked now, or Airflow has no connection to it.
    """

    template_fields: Sequence[str] = ("cluster", "only_say")
    ui_color = "#f0e4d4"

    def __init__(self, *, cluster: str, only_say: Any = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cluster = cluster
        self.only_say = only_say

    def execute(self, context: Context) -> dict[str, list[str]]:
        ti: Any = context["ti"]
        try:
            jobs = asyncio.run(ours(self.cluster))
        except AWAY as error:
            raise AirflowSkipException(f"cluster {self.cluster} cannot be asked now: {error}") from None
        except NoConnection as error:
            # The demo's cluster file at a site that has only its own: no alert every five minutes about that.
            raise AirflowSkipException(f"cluster {self.cluster} is left out: {error}") from None
        found: dict[str, list[str]] = {"cancelled": [], "noted": [], "unknown": []}
        to_note = []
        for job in jobs:
            owner = job["owner"]
            who = f"Slurm job {job['job_id']} ({job['state']}) of {owner['dag_id']}, run {owner['run_id']}"
            try:
                state = ti.get_dagrun_state(dag_id=owner["dag_id"], run_id=owner["run_id"])
                state = getattr(state, "value", state)  # str() of an enumeration is its name
            except AirflowRuntimeError:
                self.log.warning("%s: this Airflow knows no such run; left alone", who)
                found["unknown"].append(job["job_id"])
                continue
            if state not in OVER:
                self.log.info("%s: the run is %s", who, state)
            elif job["noted"] is None or str(self.only_say) == "True":
                self.log.warning("%s: the run is over (%s); the next sweep cancels it", who, state)
                found["noted"].append(job["job_id"])
                to_note.append(job["directory"])
            else:
                self.log.warning(
                    "%s: the run is over (%s), as %.0f s ago: cancelling it", who, state, job["noted"]
                )
                found["cancelled"].append(job["job_id"])
        if found["cancelled"]:
            left = asyncio.run(cancel_and_wait(self.cluster, found["cancelled"]))
            if left:
                self.log.warning("not gone yet: Slurm job %s; the next sweep looks again", ", ".join(left))
        if to_note and str(self.only_say) != "True":
            asyncio.run(ours(self.cluster, to_note))
        self.log.info("%s", ", ".join(f"{len(ids)} {what}" for what, ids in found.items()))
        return found


async def ours(cluster_name: str, note: Sequence[str] = ()) -> list[dict[str, Any]]:
    """llm-bridge's jobs that wait or run on a cluster (``include/login/ours.py``).

    :param note: attempt directories to mark as seen without a run.
    :raises LoginNodeUnreachable: no connection.
    :raises SlurmUnreachable: slurmctld does not answer.
    """
    cluster = load_cluster(cluster_name)
    async with connect(cluster) as transport:
        return await SlurmClient(cluster, transport).ours(note)
