"""Last task of a run: one table with the jobs, times and states of all stages, also of a run that failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from llm_bridge.config.loader import load_cluster
from llm_bridge.config.recipe import Stage
from llm_bridge.exceptions import ClusterUnavailable
from llm_bridge.operators.base import ClusterOperator
from llm_bridge.operators.hub import NOT_PUBLISHED_XCOM
from llm_bridge.operators.slurm import FOLLOWUP_XCOM, JOB_XCOM
from llm_bridge.pipeline import keep_runs
from llm_bridge.pipeline.approval import APPROVAL, GATE, evaluation_of, refusal
from llm_bridge.pipeline.plan import COMPARE, UNCHANGED, Plan
from llm_bridge.pipeline.start import Start
from llm_bridge.pipeline.unchanged import TRAINED_XCOM, of_previous_run
from llm_bridge.ray.startup_timing import describe, seconds
from llm_bridge.remote.messages import AttemptJob
from llm_bridge.remote.node.evaluate import report
from llm_bridge.remote.shared_transport import run_in_task
from llm_bridge.sensors.ray import JOB_XCOM_RAY
from llm_bridge.slurm import accounting
from llm_bridge.slurm.accounting import Accounting
from llm_bridge.slurm.cancellation import cancel_and_wait
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.status import JobInfo, Phase

if TYPE_CHECKING:
    from airflow.sdk import Context

# Row of the table -> the task that it shows.
ROWS = {
    "prepare": "prepare.run",
    "sft": "sft.train",
    "sft merge": "sft.merge",
    "ray cluster": "ppo.ray_up",
    "ppo": "ppo.wait",
    "merge": "merge.run",
    "evaluate": "evaluate.run",
    "upload": "upload.run",
}
# Task -> stage whose size its Slurm jobs have. ppo.wait may have started a Ray cluster of its own.
STAGE_OF: Mapping[str, Stage] = {
    "prepare.run": "prepare",
    "sft.train": "sft",
    "sft.merge": "merge",
    "ppo.ray_up": "ppo",
    "ppo.wait": "ppo",
    FOLLOWUP_XCOM: "ppo",
    "merge.run": "merge",
    "evaluate.run": "evaluate",
    "upload.run": "upload",
}
# States of a task in a run that has succeeded.
GOOD_STATES = {"success", "skipped"}


class SummaryOperator(ClusterOperator):
    """Operator that collects every stage's job, times and result, and fails if any stage failed.

    It pushes an XCom ``summary``, also when it fails: ``{"stages": [{"name", "state", "job_id", "queue_s", "run_s"}],
    "ray_phases_s": {phase of the Ray cluster's start: seconds}, "model": {...} or None, "changes": [what the form's
    overrides changed in the recipe], "started_from": the run, model or checkpoints that the run started from, or None,
    "gpu_hours": of all attempts of each task, or None, "cluster", "efficiency": [{"job_id", "directory", and what the
    job used of its request}], "evaluation": {...} or None, "refused": why the model is not published, or None,
    "unchanged_since": the run that has trained the same, or None, "run_id", "previous": {"run_id", "scores"} of the
    newest earlier run that was evaluated, with what its scores depend on, or None, "tuning": what SFT's tuner measured,
    or None}``.
    """

    ui_color = "#eeeeee"

    def execute(self, context: Context) -> None:
        """Log the table, push the XCom, and cancel jobs that no task owns any more.

        Raises:
            AirflowFailException: A task failed; the message names it.
        """
        ti: Any = context["ti"]
        tasks = ["check", *ROWS.values(), COMPARE, "ppo.submit", "ppo.ray_down", GATE, APPROVAL]
        found = ti.get_task_states(dag_id=ti.dag_id, task_ids=tasks, run_ids=[ti.run_id])
        states = {task: str(state) for task, state in found.get(ti.run_id, {}).items()}
        plan = ti.xcom_pull(task_ids="check")
        try:
            slurm, efficiency, attempts = run_in_task(self._job_states(plan, ti)) if plan else ({}, [], [])
            self._cancel_left_over(plan, slurm)
        except ClusterUnavailable as error:
            self.wait_for_cluster(plan["cluster"], error)
        rows = [self._row(name, task, states, slurm, ti) for name, task in ROWS.items()]
        uploaded = ti.xcom_pull(task_ids=ROWS["upload"]) or {}
        phases = ((ti.xcom_pull(task_ids=ROWS["ray cluster"]) or {}).get("result") or {}).get("phases") or {}
        compared = ti.xcom_pull(task_ids=COMPARE) or {}
        summary = {
            "stages": rows,
            "ray_phases_s": seconds(phases),
            "model": uploaded.get("result"),
            "changes": (plan or {}).get("changes", []),
            "started_from": _started_from(plan),
            "gpu_hours": gpu_hours(Plan.model_validate(plan), attempts) if attempts else None,
            "evaluation": evaluation_of(context),
            "refused": _refused(context) if states.get(ROWS["upload"]) == "skipped" else None,
            UNCHANGED: compared.get(UNCHANGED),
            "cluster": (plan or {}).get("cluster"),
            "efficiency": efficiency,
            "run_id": ti.run_id,
            "previous": _previous(ti),
            "tuning": ((ti.xcom_pull(task_ids=ROWS["sft"]) or {}).get("result") or {}).get("tuning"),
        }
        for line in table(rows):
            self.log.info("%s", line)
        for job in efficiency:
            self.log.info("Slurm job %s used of its request: %s", job["job_id"], accounting.describe(job))
        if why := (plan or {}).get("cluster_choice"):
            self.log.info("%s", why)
        if summary["started_from"]:
            self.log.info("started from %s", summary["started_from"])
        for change in summary["changes"]:
            self.log.info("changed against the recipe: %s", change)
        if phases:
            self.log.info("ray cluster: %s", describe(phases))
        if summary["evaluation"]:
            for line in report.table(summary["evaluation"]):
                self.log.info("%s", line)
        if tuning := summary["tuning"]:
            kind = "SFT trained with the tuner's settings" if tuning.get("applied") else "settings of SFT"
            self.log.info("%s: %s", kind, tuning["text"])
        if summary["refused"]:
            self.log.info("%s", summary["refused"])
        if since := summary[UNCHANGED]:
            self.log.info("nothing was trained, because nothing has changed since run %s", since)
        ti.xcom_push(key="summary", value=summary)
        bad = [task for task in tasks if states.get(task) not in GOOD_STATES]
        if bad:
            failed = [task for task in bad if states.get(task) == "failed"] or bad
            raise AirflowFailException(f"the run failed in {', '.join(failed)}: see the log of that task")
        if compared.get("fingerprint"):
            trained = {"fingerprint": compared["fingerprint"], "run_id": summary[UNCHANGED] or ti.run_id}
            ti.xcom_push(key=TRAINED_XCOM, value=trained)
        keep_runs.remove_old_runs(context, plan or {}, summary[UNCHANGED])

    def _cancel_left_over(self, plan: Any, slurm: dict[str, JobInfo]) -> None:
        """Cancel jobs that are still active: no task owns them any more.

        For a task that is marked failed within the second before the triggerer starts its trigger, Airflow never calls
        ``on_kill``.
        """
        left = [
            info.job_id for info in slurm.values() if info.phase is not Phase.ENDED and not info.is_completing
        ]
        if left:
            self.log.warning("cancelling Slurm job %s: still active at the end of the run", ", ".join(left))
            run_in_task(cancel_and_wait(plan["cluster"], left))

    async def _job_states(
        self, plan: dict[str, Any], ti: Any
    ) -> tuple[dict[str, JobInfo], list[dict[str, Any]], list[tuple[Stage, float]]]:
        """Return what is known of every Slurm job of the run, by task; close their stages.

        The second value is what each attempt of the run used of what it requested: ``{"directory", "job_id", ...}``
        with the values of :meth:`~llm_bridge.slurm.accounting.Accounting.efficiency`. The third one is the stage of
        each attempt that has run, and for how many seconds.
        """
        jobs = {task: ti.xcom_pull(task_ids=task, key=JOB_XCOM) for task in ROWS.values()}
        # Queued behind SFT for ppo.ray_up, which may not have run and adopted it.
        jobs[FOLLOWUP_XCOM] = ti.xcom_pull(task_ids=ROWS["sft"], key=FOLLOWUP_XCOM)
        known = {}
        async with open_client(plan["cluster"]) as client:
            directories = {job["job_id"]: job["directory"] for job in jobs.values() if job}
            found = await client.find(directories, directories=directories)
            for task, job in jobs.items():
                if not job:
                    continue
                info = found.get(job["job_id"])
                # A job that has completed its work may still end in Slurm (an epilog): it is not left over.
                if not info or not info.belongs_to(job["directory"]) or info.phase is not Phase.ENDED:
                    info = await client.look_up(**job)
                if info:
                    known[task] = info
            # No task owns these stages any more; a job that Slurm dropped from its queue left its secrets there.
            stages: dict[str, Stage] = {}
            for task, job in jobs.items():
                if job:  # a shared allocation, of SFT and then of Ray, has the size for Ray
                    stages[str(PurePosixPath(job["directory"]).parent)] = STAGE_OF[task]
            attempts: list[tuple[Stage, AttemptJob]] = []
            for directory in sorted(stages):
                found_jobs = await client.list_attempts(directory, close=True)
                attempts += [(stages[directory], job) for job in found_jobs]
            used = await client.usage([job for _, job in attempts])
            newest = {job["directory"]: known[task] for task, job in jobs.items() if job and task in known}
            ran = [
                (stage, await _seconds(client, job, used.get(job.directory), newest.get(job.directory)))
                for stage, job in attempts
            ]
        found_use = ((job, used[job.directory].efficiency()) for _, job in attempts if job.directory in used)
        return known, [{**job._asdict(), **values} for job, values in found_use if values], ran

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
        if task == ROWS["ppo"] and (ray_job := ti.xcom_pull(task_ids=task, key=JOB_XCOM_RAY)):
            result = ti.xcom_pull(task_ids=task) or {}
            # A Ray job waits in Slurm's queue with its cluster, and nowhere else.
            row |= {"job_id": ray_job["submission_id"], "queue_s": 0.0, "run_s": result.get("run_s")}
        elif info := slurm.get(task):
            row |= {"job_id": info.job_id, "queue_s": info.queue_seconds, "run_s": info.run_seconds}
        return row


def _previous(ti: Any) -> dict[str, Any] | None:
    """Return run id and scores of the newest earlier run of the DAG if it was evaluated, and what they depend on."""
    earlier = of_previous_run(ti, "summary")
    if not earlier or not earlier.get("run_id"):
        return None
    if not earlier.get("evaluation"):
        before: dict[str, Any] | None = earlier.get("previous")  # of a night that changed nothing
        return before
    found = earlier["evaluation"]
    scores = {name: model["score"] for name, model in found["models"].items()}
    return {"run_id": earlier["run_id"], "scores": scores, **report.comparable(found)}


async def _seconds(
    client: SlurmClient, job: AttemptJob, record: Accounting | None, info: JobInfo | None
) -> float:
    """Return the run time of an attempt's job in all its runs; 0 if it is unknown.

    Args:
        client: Client of the cluster.
        job: The job.
        record: Its accounting record, if there is one.
        info: What else is known of it, if it is the newest one of a task.
    """
    if record and record.is_final:
        return record.elapsed + record.earlier_seconds
    by_files = await client.seconds_by_files(job.directory)
    if by_files is None:
        return info.run_seconds if info else 0.0
    return by_files


def gpu_hours(plan: Plan, attempts: Iterable[tuple[Stage, float]]) -> float:
    """Return the GPU-hours of a run's attempts, those that failed included.

    Args:
        plan: The run's plan.
        attempts: The stage of each one, and its run time in seconds.
    """
    cluster = load_cluster(plan.cluster)
    hours = (
        plan.nodes(stage) * plan.gpus_per_node(stage, cluster) * seconds / 3600 for stage, seconds in attempts
    )
    return round(sum(hours), 4)


def _started_from(plan: dict[str, Any] | None) -> str | None:
    start = (plan or {}).get("start")
    return Start.model_validate(start).description if start else None


def _refused(context: Context) -> str | None:
    found: str | None = context["ti"].xcom_pull(task_ids=ROWS["upload"], key=NOT_PUBLISHED_XCOM)
    return refusal(context) or found


COLUMNS = ("name", "state", "job_id", "queue_s", "run_s")


def table(rows: Sequence[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> list[str]:
    """Format rows as lines of text, in columns.

    Args:
        rows: Dicts with the columns as keys.
        columns: The keys, in order.
    """
    cells = [list(columns)] + [["" if row[c] is None else str(row[c]) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
