"""The first task of a run: everything that can be known to be wrong is said before anything is submitted."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from llm_bridge import stages
from llm_bridge.config.cluster import Cluster
from llm_bridge.config.errors import ConfigError
from llm_bridge.config.load import load_cluster
from llm_bridge.plan import Plan, make_plan
from llm_bridge.slurm.away import AWAY, WaitsForCluster
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.slurm.job import SlurmJob
from llm_bridge.slurm.operators import password_of
from llm_bridge.transport import LoginRefused, connect

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

HUB_ENDPOINT = "https://huggingface.co"


class CheckOperator(WaitsForCluster):
    """Turn the form into a :class:`~llm_bridge.plan.Plan` and ask the cluster whether it can be carried out.

    :returns: the plan, as JSON, for the tasks that follow.
    :raises ConfigError: with one sentence for each thing that is wrong; no retry follows.
    """

    ui_color = "#eeeeee"

    def execute(self, context: Context) -> dict[str, Any]:
        ti: Any = context["ti"]
        plan = make_plan(dict(context["params"]), ti.dag_id, ti.run_id)
        log.info(
            "run %r: %s on cluster %s, stages %s", plan.run_name, plan.recipe.name, plan.cluster, plan.stages
        )
        log.info("everything of this run is below %s on the cluster", plan.directory)
        if "ppo" in plan.stages:
            log.info("PPO starts from %s", plan.ppo_starts_from)
        try:
            asyncio.run(ask_cluster(plan))
        except LoginRefused as error:
            raise ConfigError(str(error)) from None
        except AWAY as error:
            self.wait_for(plan.cluster, error)
        return plan.model_dump(mode="json")


async def ask_cluster(plan: Plan) -> None:
    """Paths, token and every job's feasibility, asked on the login node."""
    cluster = load_cluster(plan.cluster)
    jobs = planned_jobs(plan)
    for job in jobs:
        for conn_id in job.secrets.values():
            await asyncio.to_thread(password_of, conn_id)
    async with connect(cluster) as transport:
        client = SlurmClient(cluster, transport)
        sources = (plan.recipe.base_model, plan.recipe.data.source)
        request = {
            "workspace": plan.workspace,
            "readable": [path for path in sources if path.startswith("/")],
            "hub": await asyncio.to_thread(_hub, plan, cluster),
        }
        answer = await client.ask("check", request)
        for note in answer["notes"]:
            log.info("%s", note)
        if answer["problems"]:
            raise ConfigError(
                f"cluster {cluster.name!r}: {'; '.join(answer['problems'])}. Nothing was submitted."
            )
        for job in jobs:
            log.info("%s: %s", job.stage, await client.test_only(job))


def planned_jobs(plan: Plan) -> list[SlurmJob]:
    """Every Slurm job that the run will submit."""
    makers = {
        "prepare": [stages.prepare],
        "sft": [stages.sft_in, stages.sft_merge],
        "ppo": [stages.ray_cluster],
        "merge": [stages.merge],
        "upload": [stages.upload],
    }
    return [make(plan) for stage in plan.stages for make in makers[stage]]


def _hub(plan: Plan, cluster: Cluster) -> dict[str, str] | None:
    if "upload" not in plan.stages or not cluster.hub.conn_id:
        return None
    endpoint = cluster.variables.get("HF_ENDPOINT", HUB_ENDPOINT)
    return {"endpoint": endpoint, "token": password_of(cluster.hub.conn_id)}
