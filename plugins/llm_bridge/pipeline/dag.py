"""Post-training of a language model on a Slurm cluster: prepare → SFT → PPO on Ray → merge → evaluate → upload.

Every post-training DAG has this task graph. Empty fields of the trigger form take the recipe's values. When a run is
cleared, finished stages are not run again, and a training resumes from its newest complete checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import DAG, TaskGroup
from airflow.sdk.exceptions import AirflowSkipException

from llm_bridge import notifications
from llm_bridge.config.recipe import Stage
from llm_bridge.operators.hub import HubUploadOperator
from llm_bridge.operators.ray import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.operators.slurm import FOLLOWUP_XCOM, JOB_XCOM, SlurmCancelOperator, SlurmSubmitOperator
from llm_bridge.pipeline import stages
from llm_bridge.pipeline.approval import ApprovalTask, GateOperator, refusal
from llm_bridge.pipeline.check import CheckOperator
from llm_bridge.pipeline.form import form
from llm_bridge.pipeline.plan import Plan, plan_of, skip_unless_selected
from llm_bridge.pipeline.summary import SummaryOperator
from llm_bridge.pipeline.unchanged import UnchangedOperator
from llm_bridge.remote import attempt_dir
from llm_bridge.sensors.ray import RayJobSensor

if TYPE_CHECKING:
    from airflow.sdk import Context

# SlurmJob, RayJob, or None for no job.
Job = TypeVar("Job")

SFT = "sft.train"
# A stage that is not selected for this run is skipped, and the next one runs nevertheless.
AFTER_SKIPPED = "none_failed"


def post_training(
    dag_id: str, *, recipe: str | None = None, schedule: str | None = None, description: str = ""
) -> DAG:
    """Build one post-training DAG.

    Args:
        dag_id: Id of the DAG.
        recipe: Recipe that the trigger form preselects, of which one run is active at a time. When empty, the form
            preselects the first one, and 16 runs may be active.
        schedule: Cron line; None for a DAG that only runs when triggered.
        description: One line for the list of DAGs.
    """
    with DAG(
        dag_id,
        description=description,
        schedule=schedule,
        start_date=datetime(2026, 1, 1),
        catchup=False,
        max_active_runs=1 if recipe else 16,
        is_paused_upon_creation=True,
        params=form(recipe),
        tags=["llm-bridge"],
        doc_md=__doc__,
        default_args={
            "retries": 2,
            "retry_delay": timedelta(minutes=1),
            **notifications.for_tasks(),
        },
        deadline=notifications.deadline_alert(dag_id),
    ) as dag:
        check = CheckOperator(task_id="check")

        with TaskGroup("prepare"):
            prepare = SlurmSubmitOperator(task_id="run", job=for_stage("prepare", stages.prepare))
            compare = UnchangedOperator(task_id="compare", trigger_rule=AFTER_SKIPPED)
            prepare >> compare

        with TaskGroup("sft"):
            train = SlurmSubmitOperator(
                task_id="train",
                job=for_stage("sft", stages.sft_job),
                followed_by=for_stage("sft", stages.prequeued_ray_cluster),
                trigger_rule=AFTER_SKIPPED,
            )
            sft_merge = SlurmSubmitOperator(task_id="merge", job=for_stage("sft", stages.sft_merge))
            train >> sft_merge

        with TaskGroup("ppo"):
            ppo, ray_cluster = for_stage("ppo", stages.ppo), for_stage("ppo", stages.ray_cluster)
            # Any: as_setup has no annotations.
            ray_up: Any = RayClusterOperator(
                task_id="ray_up",
                job=ray_cluster,
                skip_if_done=ppo,
                adopt_from=_sft_ray_job,
                trigger_rule=AFTER_SKIPPED,
            )
            ray_up.as_setup()
            submit = RaySubmitJobOperator(task_id="submit", ray=ray_up.output, job=ppo)
            wait = RayJobSensor(task_id="wait", submitted=submit.output, job=ppo, ray_cluster=ray_cluster)
            ray_down = SlurmCancelOperator(task_id="ray_down", stage=_ray_stages).as_teardown(setups=ray_up)
            ray_up >> submit >> wait >> ray_down

        with TaskGroup("merge"):
            merge = SlurmSubmitOperator(
                task_id="run", job=for_stage("merge", stages.merge), trigger_rule=AFTER_SKIPPED
            )

        with TaskGroup("evaluate"):
            evaluate = SlurmSubmitOperator(
                task_id="run", job=for_stage("evaluate", stages.evaluate), trigger_rule=AFTER_SKIPPED
            )

        with TaskGroup("upload"):
            gate = GateOperator(task_id="gate", trigger_rule=AFTER_SKIPPED)
            approval = ApprovalTask(task_id="approval", trigger_rule=AFTER_SKIPPED)
            upload = HubUploadOperator(
                task_id="run",
                job=_if_published(for_stage("upload", stages.upload)),
                trigger_rule=AFTER_SKIPPED,
            )

        # Runs in any case, and fails if any task failed: the run's state is right, and one log has the whole summary.
        summary = SummaryOperator(
            task_id="summary", trigger_rule="all_done", retries=0, **notifications.for_last_task()
        )

        check >> prepare
        compare >> train
        sft_merge >> ray_up
        wait >> merge >> evaluate >> gate >> approval >> upload >> summary
        [check, ray_down] >> summary
        # Every task has its plan from check: one that is cleared together with check must wait for the new plan.
        # Cleared without the approval between them, the upload must wait for the gate's new decision.
        gate >> upload
        check >> [compare, train, sft_merge, ray_up, submit, wait, merge, evaluate, gate, approval, upload]
    return dag


def for_stage(stage: Stage, build: Callable[[Plan], Job]) -> Callable[[Context], Job]:
    """Return a function that builds a task's job from the run's plan, for when the task runs.

    Args:
        stage: The task's stage; the function skips the task where the plan does not have this stage.
        build: Builds the job.
    """

    def build_job(context: Context) -> Job:
        plan = plan_of(context)
        skip_unless_selected(plan, stage)
        return build(plan)

    return build_job


def _if_published(build: Callable[[Context], Job]) -> Callable[[Context], Job]:
    """Return the same function, which skips its task where the gate or a person refused the model."""

    def build_job(context: Context) -> Job:
        if reason := refusal(context):
            raise AirflowSkipException(reason)
        return build(context)

    return build_job


def _sft_ray_job(context: Context) -> dict[str, str] | None:
    """Return the job, submitted by sft.train, in which Ray runs or will run; None where PPO submits its own."""
    key = {"per_stage": None, "queue_ahead": FOLLOWUP_XCOM, "shared": JOB_XCOM}[plan_of(context).allocation]
    job: dict[str, str] | None = context["ti"].xcom_pull(task_ids=SFT, key=key) if key else None
    return job


def _ray_stages(context: Context) -> tuple[str, ...]:
    """Return the cluster's name, and every stage directory that may have a Ray cluster of this run.

    Ray clusters are submitted by ppo.ray_up, by ppo.wait (recovery), and by sft.train (prequeued or shared).
    """
    plan = plan_of(context)
    ppo = plan.stage_dir("ppo")
    shared = [plan.stage_dir("sft")] if plan.allocation == "shared" else []
    return plan.cluster, ppo, f"{ppo}/{attempt_dir.RECOVERY}", plan.prequeued_dir, *shared
