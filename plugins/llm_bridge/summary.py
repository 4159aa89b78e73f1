"""The last task of a run: what each stage did, in one table, whatever became of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from llm_bridge.config.load import load_cluster
from llm_bridge.slurm.away import AWAY, WaitsForCluster
from llm_bridge.slurm.cancel import cancel_and_wait
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.slurm.info import JobInfo
from llm_bridge.slurm.states import Phase
from llm_bridge.transport import connect

if TYPE_CHECKING:
    from airflow.sdk import Context

# Row of the table -> the task that it speaks of.
ROWS = {
    "prepare": "prepare.run",
    "sft": "sft.train",
    "sft merge": "sft.merge",
    "ray cluster": "ppo.ray_up",
    "ppo": "ppo.wait",
    "merge": "merge.run",
    "upload": "upload.run",
}
GOOD = {"success", "skipped"}


class SummaryOperator(WaitsForCluster):
    """Collect every stage's job, times and result; fail if any stage failed.

    Leaves an XCom ``summary``, also when it fails: ``{"stages": [{"name", "state", "job_id", "queue_s", "run_s"}],
    "model": {...} or None}``.

    :raises AirflowFailException: a task failed; the message names it.
    """

    ui_color = "#eeeeee"

    def execute(self, context: Context) -> None:
        ti: Any = context["ti"]
        tasks = ["check", *ROWS.values(), "ppo.submit", "ppo.ray_down"]
        found = ti.get_task_states(dag_id=ti.dag_id, task_ids=tasks, run_ids=[ti.run_id])
        states = {task: str(state) for task, state in found.get(ti.run_id, {}).items()}
        plan = ti.xcom_pull(task_ids="check")
        try:
            slurm = asyncio.run(self._slurm(plan, ti)) if plan else {}
            self._cancel_left_over(plan, slurm)
        except AWAY as error:
            self.wait_for(plan["cluster"], error)
        rows = [self._row(name, task, states, slurm, ti) for name, task in ROWS.items()]
        uploaded = ti.xcom_pull(task_ids=ROWS["upload"]) or {}
        summary = {"stages": rows, "model": uploaded.get("result")}
        for line in table(rows):
            self.log.info("%s", line)
        ti.xcom_push(key="summary", value=summary)
        bad = [task for task in tasks if states.get(task) not in GOOD]
        if bad:
            failed = [task for task in bad if states.get(task) == "failed"] or bad
            raise AirflowFailException(f"the run failed in {', '.join(failed)}: its log tells why")

    def _cancel_left_over(self, plan: Any, slurm: dict[str, JobInfo]) -> None:
        """No task is left to answer for these jobs.

        A task that is marked failed within the second before the triggerer has taken its trigger up never gets
        its ``on_kill``.
        """
        left = [info.job_id for info in slurm.values() if info.phase is not Phase.ENDED]
        if left:
            self.log.warning("still there after the run: cancelling Slurm job %s", ", ".join(left))
            asyncio.run(cancel_and_wait(plan["cluster"], left))

    async def _slurm(self, plan: dict[str, Any], ti: Any) -> dict[str, JobInfo]:
        """What is known of every job of the run, by task."""
        jobs = {task: ti.xcom_pull(task_ids=task, key="slurm_job") for task in ROWS.values()}
        # Queued behind SFT for ppo.ray_up, which may never have come to take it over.
        jobs["then"] = ti.xcom_pull(task_ids=ROWS["sft"], key="then")
        cluster = load_cluster(plan["cluster"])
        known = {}
        async with connect(cluster) as transport:
            client = SlurmClient(cluster, transport)
            found = await client.find(job["job_id"] for job in jobs.values() if job)
            for task, job in jobs.items():
                if job and (info := found.get(job["job_id"]) or await client.look_up(**job)):
                    known[task] = info
        return known

    def _row(
        self, name: str, task: str, states: dict[str, str], slurm: dict[str, JobInfo], ti: Any
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "name": name,
            "state": states.get(task),
            "job_id": None,
            "queue_s": None,
            "run_s": None,
        }
        if task == ROWS["ppo"] and (ray_job := ti.xcom_pull(task_ids=task, key="ray_job")):
            result = ti.xcom_pull(task_ids=task) or {}
            # A Ray job waits in Slurm's queue with its cluster, and nowhere else.
            row |= {"job_id": ray_job["submission_id"], "queue_s": 0.0, "run_s": result.get("run_s")}
        elif info := slurm.get(task):
            row |= {"job_id": info.job_id, "queue_s": info.queue_seconds, "run_s": info.run_seconds}
        return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as lines of text."""
    columns = ("name", "state", "job_id", "queue_s", "run_s")
    cells = [list(columns)] + [["" if row[c] is None else str(row[c]) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
