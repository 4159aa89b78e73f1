"""The task graph that every post-training DAG shares: prepare → SFT → PPO on Ray → merge → upload → summary."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from airflow.sdk import DAG, Param, TaskGroup
from airflow.sdk.exceptions import AirflowSkipException

from llm_bridge import alerts, stages
from llm_bridge.check import CheckOperator
from llm_bridge.config.load import available
from llm_bridge.config.recipe import STAGES, Allocation, Stage
from llm_bridge.hub.operators import HubUploadOperator
from llm_bridge.plan import Plan
from llm_bridge.ray.operators import RayClusterOperator, RaySubmitJobOperator
from llm_bridge.ray.sensors import AGAIN, RayJobSensor
from llm_bridge.slurm.operators import SlurmSubmitOperator
from llm_bridge.slurm.teardown import SlurmCancelOperator
from llm_bridge.summary import SummaryOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

Made = TypeVar("Made")

SFT = "sft.train"
# A stage that this run leaves out is skipped, and the next one goes on all the same.
AFTER_SKIPPED = "none_failed"


def post_training(
    dag_id: str, *, recipe: str | None = None, schedule: str | None = None, description: str = ""
) -> DAG:
    """Build one post-training DAG.

    :param recipe: preselected recipe; the first one when empty.
    :param schedule: cron line; None for a DAG that only runs when triggered.
    """
    with DAG(
        dag_id,
        description=description,
        schedule=schedule,
        start_date=datetime(2026, 1, 1),
        catchup=False,
        max_active_runs=1 if schedule else 16,
        is_paused_upon_creation=True,
        params=form(recipe),
        tags=["llm-bridge"],
        doc_md=__doc__,
        default_args={
            "retries": 2,
            "retry_delay": timedelta(minutes=1),
            **alerts.for_tasks(),
        },
        deadline=alerts.deadline(dag_id),
    ) as dag:
        check = CheckOperator(task_id="check")

        with TaskGroup("prepare"):
            prepare = SlurmSubmitOperator(task_id="run", job=of("prepare", stages.prepare))

        with TaskGroup("sft"):
            train = SlurmSubmitOperator(
                task_id="train",
                job=of("sft", stages.sft_in),
                then=of("sft", stages.ray_ahead),
                trigger_rule=AFTER_SKIPPED,
            )
            sft_merge = SlurmSubmitOperator(task_id="merge", job=of("sft", stages.sft_merge))
            train >> sft_merge

        with TaskGroup("ppo"):
            ppo, ray_cluster = of("ppo", stages.ppo), of("ppo", stages.ray_cluster)
            ray_up = RayClusterOperator(
                task_id="ray_up", job=ray_cluster, serves=ppo, adopts=_ray_in, trigger_rule=AFTER_SKIPPED
            ).as_setup()
            submit = RaySubmitJobOperator(task_id="submit", ray=ray_up.output, job=ppo)
            wait = RayJobSensor(task_id="wait", submitted=submit.output, job=ppo, ray_cluster=ray_cluster)
            ray_down = SlurmCancelOperator(task_id="ray_down", stage=_ray_stage).as_teardown(setups=ray_up)
            ray_up >> submit >> wait >> ray_down

        with TaskGroup("merge"):
            merge = SlurmSubmitOperator(
                task_id="run", job=of("merge", stages.merge), trigger_rule=AFTER_SKIPPED
            )

        with TaskGroup("upload"):
            upload = HubUploadOperator(
                task_id="run", job=of("upload", stages.upload), trigger_rule=AFTER_SKIPPED
            )

        # Runs whatever happened, and fails if anything did: so the run's state is right, and one log tells all.
        summary = SummaryOperator(
            task_id="summary", trigger_rule="all_done", retries=0, **alerts.for_last_task()
        )

        check >> prepare >> train
        sft_merge >> ray_up
        wait >> merge >> upload >> summary
        [check, ray_down] >> summary
    return dag


def form(recipe: str | None = None) -> dict[str, Param]:
    """The fields of the trigger form. Those that are asked for most stand first; empty means the recipe's value."""
    recipes, clusters = available("recipes"), available("clusters")
    return {
        "recipe": Param(
            recipe or recipes[0],
            enum=recipes,
            title="Recipe",
            description="What to train: a file in include/recipes.",
        ),
        "cluster": Param(
            "",
            enum=["", *clusters],
            values_display={"": "(the recipe's)"},
            title="Cluster",
            description="Where to train: a file in include/clusters.",
        ),
        "run_name": Param(
            None,
            type=["null", "string"],
            maxLength=100,
            title="Run name",
            description="For W&B and the summary.",
        ),
        "base_model": Param(
            None,
            type=["null", "string"],
            title="Base model",
            description="OWNER/NAME on the Hub, or an absolute path on the cluster. Empty: the recipe's.",
        ),
        "repo_id": Param(
            None,
            type=["null", "string"],
            title="Upload to",
            description="OWNER/NAME on the Hub. Empty: the recipe's.",
        ),
        "nodes": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="Nodes",
            description="For SFT and PPO each. Empty: the recipe's.",
        ),
        "allocation": Param(
            "",
            enum=["", *get_args(Allocation)],
            values_display={
                "": "(the recipe's)",
                "per_stage": "each stage asks for its own",
                "queue_ahead": "PPO's are queued for while SFT runs",
                "shared": "SFT and PPO share one job",
            },
            title="Nodes of SFT and PPO",
            description="How long to wait in a busy cluster's queue: docs/every-day.md.",
        ),
        "stages": Param(
            list(STAGES),
            type="array",
            items={"type": "string", "enum": list(STAGES)},
            examples=list(STAGES),
            title="Stages",
            description="Those left out are skipped. Without sft, PPO starts from the base model.",
        ),
        "force_stages": Param(
            [],
            type=["null", "array"],  # else the form marks it as required
            items={"type": "string", "enum": list(STAGES)},
            examples=list(STAGES),
            title="Stages to make anew",
            description="When this run is cleared later, a stage whose result is there is not run again, except these.",
        ),
    }


def of(stage: Stage, make: Callable[[Plan], Made]) -> Callable[[Context], Made]:
    """What a task of ``stage`` submits, made from the run's plan when the task runs; skips a stage left out."""

    def made(context: Context) -> Made:
        plan = plan_of(context)
        if stage not in plan.stages:
            raise AirflowSkipException(
                f"stage {stage!r} is not among this run's stages: {', '.join(plan.stages)}"
            )
        return make(plan)

    return made


def plan_of(context: Context) -> Plan:
    """The plan that the run's check made."""
    values: Any = context["ti"].xcom_pull(task_ids="check")
    return Plan.model_validate(values)


def _ray_in(context: Context) -> dict[str, str] | None:
    """The job of sft.train's in which Ray is, or comes."""
    key = {"per_stage": None, "queue_ahead": "then", "shared": "slurm_job"}[plan_of(context).allocation]
    found: Any = context["ti"].xcom_pull(task_ids=SFT, key=key) if key else None
    return found


def _ray_stage(context: Context) -> tuple[str, ...]:
    """Where Ray clusters of this run may be: ppo.ray_up's, those of sft.train, and what ppo.wait brings up again."""
    plan = plan_of(context)
    ppo = plan.stage_dir("ppo")
    shared = [plan.stage_dir("sft")] if plan.allocation == "shared" else []
    return plan.cluster, ppo, f"{ppo}/{AGAIN}", plan.ahead_dir, *shared
