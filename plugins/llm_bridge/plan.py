"""What one run will do: the trigger form and the recipe, resolved and checked, with every path."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.errors import ConfigError
from llm_bridge.config.load import check_model, load_cluster, load_recipe
from llm_bridge.config.recipe import STAGES, Allocation, JobSize, ModelSource, Recipe, RepoId, Stage
from llm_bridge.config.values import AbsolutePath, Count, SlurmWord, Strict, Text
from llm_bridge.keys import slug

# Stages that run on GPUs; the others are small jobs on one node.
TRAINING: tuple[Stage, ...] = ("sft", "ppo")


class Form(Strict):
    """The fields of the trigger form. Empty ones leave the recipe's value."""

    recipe: SlurmWord
    cluster: SlurmWord | None = None
    run_name: Text | None = Field(default=None, max_length=100)
    base_model: ModelSource | None = None
    repo_id: RepoId | None = None
    nodes: Count | None = None
    allocation: Allocation | None = None
    stages: list[Stage] = list(STAGES)
    force_stages: list[Stage] = []

    @field_validator("run_name", "base_model", "repo_id", "cluster", "allocation", mode="before")
    @classmethod
    def _blank_is_empty(cls, value: Any) -> Any:
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("force_stages", mode="before")
    @classmethod
    def _none_is_none(cls, value: Any) -> Any:
        return [] if value is None else value

    @field_validator("stages")
    @classmethod
    def _some(cls, value: list[Stage]) -> list[Stage]:
        if not value:
            raise ValueError(f"choose at least one of {', '.join(STAGES)}")
        return [stage for stage in STAGES if stage in value]


class Plan(Strict):
    """One run, resolved. Travels between tasks as JSON; holds no secret."""

    run_name: Text
    cluster: SlurmWord
    recipe: Recipe
    stages: list[Stage]
    # Those that are run although their result is there.
    force_stages: list[Stage] = []
    # WORKSPACE/DAG/RUN on the cluster.
    directory: AbsolutePath
    workspace: AbsolutePath

    def stage_dir(self, stage: Stage) -> str:
        return f"{self.directory}/{stage}"

    @property
    def data_dir(self) -> str:
        """Shared by all runs: the data set is made once."""
        data = self.recipe.data
        return f"{self.workspace}/data/{slug(f'{data.source}/{data.config}'.strip('/').replace('/', '--'))}"

    @property
    def base_model_path(self) -> str:
        base = self.recipe.base_model
        return base if base.startswith("/") else f"{self.workspace}/models/{base.replace('/', '--')}"

    @property
    def sft_merge_dir(self) -> str:
        return f"{self.stage_dir('sft')}/merge"

    @property
    def sft_model(self) -> str:
        return f"{self.stage_dir('sft')}/model"

    @property
    def ppo_model(self) -> str:
        return f"{self.stage_dir('merge')}/model"

    @property
    def ppo_starts_from(self) -> str:
        """The SFT result, or the base model if the recipe says so or this run has no SFT."""
        from_sft = self.recipe.ppo.init_from == "sft" and "sft" in self.stages
        return self.sft_model if from_sft else self.base_model_path

    @property
    def final_model(self) -> str:
        """What is uploaded: PPO's model, or SFT's in a run without PPO."""
        return self.ppo_model if "merge" in self.stages else self.sft_model

    @property
    def allocation(self) -> Allocation:
        """How PPO comes by its nodes in this run; on its own where there is no SFT before it."""
        both = {"sft", "ppo"} <= set(self.stages)
        return self.recipe.allocation if both else "per_stage"

    @property
    def ahead_dir(self) -> str:
        """Stage directory of Ray clusters that were queued while SFT ran."""
        return f"{self.stage_dir('ppo')}/ahead"

    def size(self, stage: Stage) -> JobSize:
        return getattr(self.recipe, stage)

    def nodes(self, stage: Stage) -> int:
        return self.size(stage).nodes or (self.recipe.nodes if stage in TRAINING else 1)

    def gpus_per_node(self, stage: Stage, cluster: Cluster) -> int:
        wanted = self.size(stage).gpus_per_node
        if stage not in TRAINING:
            return wanted or 0
        return wanted or self.recipe.gpus_per_node or cluster.gpus_per_node


def make_plan(params: dict[str, Any], dag_id: str, run_id: str) -> Plan:
    """Resolve the form against recipe and cluster file.

    :param params: the form's fields.
    :raises ConfigError: anything that can be known to be wrong without asking the cluster.
    """
    form = check_model(Form, params, "the trigger form")
    recipe = load_recipe(form.recipe)
    cluster_name = form.cluster or recipe.cluster
    if cluster_name is None:
        raise ConfigError(
            f"no cluster: choose one in the form, or set 'cluster' in include/recipes/{recipe.name}.yaml"
        )
    cluster = load_cluster(cluster_name)
    changes: dict[str, Any] = {}
    if form.base_model:
        changes["base_model"] = form.base_model
    if form.repo_id:
        changes["hub"] = recipe.hub.model_copy(update={"repo_id": form.repo_id})
    if form.allocation:
        changes["allocation"] = form.allocation
    if form.nodes:
        for stage in TRAINING:
            changes[stage] = getattr(recipe, stage).model_copy(update={"nodes": form.nodes})
    plan = Plan(
        run_name=form.run_name or run_id,
        cluster=cluster.name,
        recipe=recipe.model_copy(update=changes),
        stages=form.stages,
        force_stages=form.force_stages,
        directory=f"{cluster.workspace}/{slug(dag_id)}/{slug(run_id)}",
        workspace=cluster.workspace,
    )
    _check(plan, cluster)
    return plan


def _check(plan: Plan, cluster: Cluster) -> None:
    """What no single field can tell."""
    where = f"recipe {plan.recipe.name!r} on cluster {cluster.name!r}"
    for stage in plan.stages:
        asked = plan.gpus_per_node(stage, cluster)
        if asked > cluster.gpus_per_node:
            raise ConfigError(
                f"{where}: stage {stage!r} asks for {asked} GPUs a node, a node has {cluster.gpus_per_node}: lower "
                f"gpus_per_node in include/recipes/{plan.recipe.name}.yaml and raise nodes instead"
            )
    if plan.allocation == "shared":
        sizes = {s: (plan.nodes(s), plan.gpus_per_node(s, cluster)) for s in TRAINING}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{s} {n} node(s) x {gpus} GPU(s)" for s, (n, gpus) in sizes.items())
            raise ConfigError(
                f"{where}: allocation 'shared' gives SFT and PPO the same nodes, but they ask for {told}: make them "
                f"equal in include/recipes/{plan.recipe.name}.yaml, or choose allocation per_stage or queue_ahead"
            )
    if "upload" in plan.stages and not plan.recipe.hub.repo_id:
        raise ConfigError(
            f"{where}: stage 'upload' needs repo_id, in the form or as hub.repo_id in the recipe"
        )
    if "upload" in plan.stages and not {"sft", "merge"} & set(plan.stages):
        raise ConfigError(
            f"{where}: stage 'upload' has no model to upload: choose 'merge' (PPO's) or 'sft' too"
        )
    if "merge" in plan.stages and "ppo" not in plan.stages:
        raise ConfigError(f"{where}: stage 'merge' makes PPO's model: choose 'ppo' too")
    if "ppo" in plan.stages and "upload" in plan.stages and "merge" not in plan.stages:
        raise ConfigError(f"{where}: PPO's model is uploaded from stage 'merge': choose it too")
