"""What each stage submits: from the plan to job descriptions."""

from __future__ import annotations

from typing import Any

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.hang import START_MINUTES, Hang
from llm_bridge.config.load import load_cluster
from llm_bridge.config.recipe import Stage, TrainStage
from llm_bridge.hub.operators import upload_settings
from llm_bridge.plan import TRAINING, Plan
from llm_bridge.ray.job import RayJob
from llm_bridge.slurm.fingerprint import Result
from llm_bridge.slurm.job import Resources, SlurmJob
from llm_bridge.slurm.time_limit import total


def prepare(plan: Plan) -> SlurmJob:
    """Data and base model, unless they are there already."""
    recipe = plan.recipe
    settings = {
        "data_source": recipe.data.source,
        "data_config": recipe.data.config,
        "data_dir": plan.data_dir,
        "base_model": recipe.base_model,
        "model_dir": plan.base_model_path,
    }
    result = _result(plan, "prepare", shared=[plan.data_dir, plan.base_model_path])
    return _job(plan, "prepare", "prepare", settings, result, hub=True)


def sft(plan: Plan) -> SlurmJob:
    """Supervised fine-tuning on one or many nodes."""
    checkpoints = f"{plan.stage_dir('sft')}/checkpoints"
    settings = {
        "model_path": plan.base_model_path,
        "checkpoint_dir": checkpoints,
        "keep": plan.recipe.sft.keep,
        "verl": plan.recipe.sft.verl,
        "preflight": _preflight(plan, "sft"),
        **_training(plan),
    }
    job = _job(plan, "sft", "sft", settings, _result(plan, "sft", outputs=[checkpoints]), wandb=True)
    return job.model_copy(update={"hang": _hang(plan, plan.recipe.sft), "warned": True})


def sft_merge(plan: Plan) -> SlurmJob:
    """SFT's sharded checkpoint as one model folder."""
    settings = {
        "checkpoint_dir": f"{plan.stage_dir('sft')}/checkpoints",
        "component": None,
        "output_dir": plan.sft_model,
    }
    result = _result(plan, "sft", inputs=[plan.stage_dir("sft")], outputs=[plan.sft_model])
    return _job(plan, "merge", "merge", settings, result, directory=plan.sft_merge_dir)


def ray_cluster(plan: Plan) -> SlurmJob:
    """The Ray cluster that PPO runs on."""
    cluster = load_cluster(plan.cluster)
    settings = {
        "nodes": plan.nodes("ppo"),
        "gpus_per_node": plan.gpus_per_node("ppo", cluster),
        "device": cluster.device,
        "cpus_per_node": cluster.ray.cpus_per_node,
        "object_store_gib": cluster.ray.object_store_gib,
        "temp_dir": cluster.ray.temp_dir,
        "ready_minutes": cluster.ray.ready_minutes,
        "idle_minutes": cluster.ray.idle_minutes,
        "preflight": _preflight(plan, "ppo"),
    }
    job = _job(plan, "ppo", "ray_cluster", settings, None, wandb=True)
    return job.model_copy(update={"warned": True})


def sft_then_ray(plan: Plan) -> SlurmJob:
    """SFT, its merge and the Ray cluster for PPO, one after the other in one allocation."""
    parts, cluster = (sft(plan), sft_merge(plan)), ray_cluster(plan)
    settings = {**cluster.settings, **parts[1].settings, **parts[0].settings}
    sizes = [plan.size(stage) for stage in TRAINING]
    site = load_cluster(plan.cluster)
    limits = [
        size.time_limit or getattr(site.stages.get(stage), "time_limit", None) or site.time_limit
        for stage, size in zip(TRAINING, sizes, strict=True)
    ]
    resources = cluster.resources.model_copy(update={"time_limit": total(limits)})
    more = {"settings": settings, "resources": resources, "directory": plan.stage_dir("sft")}
    more["hang"] = parts[0].hang
    return cluster.model_copy(
        update={**more, "template": "sft_then_ray", "makes": parts, "ready_file": "sft_done.json"}
    )


def sft_in(plan: Plan) -> SlurmJob:
    """The job that SFT runs in."""
    return sft_then_ray(plan) if plan.allocation == "shared" else sft(plan)


def ray_ahead(plan: Plan) -> SlurmJob | None:
    """The Ray cluster, if it is to be queued while SFT runs."""
    if plan.allocation != "queue_ahead":
        return None
    return ray_cluster(plan).model_copy(update={"directory": plan.ahead_dir})


def ppo(plan: Plan) -> RayJob:
    """PPO, as a job on the Ray cluster."""
    cluster = load_cluster(plan.cluster)
    checkpoints = f"{plan.stage_dir('ppo')}/checkpoints"
    settings = {
        "actor_path": plan.ppo_starts_from,
        "critic_path": plan.ppo_starts_from,
        "checkpoint_dir": checkpoints,
        "nodes": plan.nodes("ppo"),
        "gpus_per_node": plan.gpus_per_node("ppo", cluster),
        "keep": plan.recipe.ppo.keep,
        "verl": plan.recipe.ppo.verl,
        **_training(plan),
    }
    inputs = [plan.sft_merge_dir] if plan.ppo_starts_from == plan.sft_model else []
    result = _result(plan, "ppo", inputs=inputs, outputs=[checkpoints])
    return RayJob(
        program="ppo.py",
        settings=settings,
        directory=plan.stage_dir("ppo"),
        result=result,
        hang=_hang(plan, plan.recipe.ppo),
    )


def merge(plan: Plan) -> SlurmJob:
    """PPO's actor as one model folder."""
    settings = {
        "checkpoint_dir": f"{plan.stage_dir('ppo')}/checkpoints",
        "component": "actor",
        "output_dir": plan.ppo_model,
    }
    result = _result(plan, "merge", inputs=[plan.stage_dir("ppo")], outputs=[plan.ppo_model])
    return _job(plan, "merge", "merge", settings, result)


def upload(plan: Plan) -> SlurmJob:
    """The final model to the Hub."""
    hub = plan.recipe.hub
    made_by = plan.stage_dir("merge") if plan.final_model == plan.ppo_model else plan.sft_merge_dir
    settings = upload_settings(plan.final_model, hub.repo_id, hub.private)
    return _job(plan, "upload", "upload", settings, _result(plan, "upload", inputs=[made_by]), hub=True)


def _result(plan: Plan, stage: Stage, **paths: list[str]) -> Result:
    return Result(force=stage in plan.force_stages, **paths)


def _training(plan: Plan) -> dict[str, Any]:
    """What SFT and PPO have in common."""
    return {
        "train_files": f"{plan.data_dir}/train.parquet",
        "val_files": f"{plan.data_dir}/test.parquet",
        "device": load_cluster(plan.cluster).device,
        "logger": list(plan.recipe.logger),
        "project_name": plan.recipe.wandb.project,
        "experiment_name": plan.run_name,
        "wandb_entity": plan.recipe.wandb.entity,
    }


def _hang(plan: Plan, stage: TrainStage) -> Hang | None:
    """When a training counts as hung: as the recipe says, else as the cluster file says."""
    cluster = load_cluster(plan.cluster)
    minutes = cluster.hang_minutes if stage.hang_minutes is None else stage.hang_minutes
    return Hang.of(minutes, stage.on_hang or cluster.on_hang, start_minutes=START_MINUTES)


def _preflight(plan: Plan, stage: Stage) -> dict[str, Any] | None:
    """What ``include/jobs/preflight.py`` is told; None leaves it out."""
    cluster = load_cluster(plan.cluster)
    if cluster.preflight is None:
        return None
    asked = {"gpus_per_node": plan.gpus_per_node(stage, cluster), "device": cluster.device}
    return cluster.preflight.model_dump() | asked | {"temp_dir": cluster.ray.temp_dir}


def _job(
    plan: Plan,
    stage: Stage,
    template: str,
    settings: dict[str, Any],
    result: Result | None,
    *,
    directory: str | None = None,
    hub: bool = False,
    wandb: bool = False,
) -> SlurmJob:
    cluster = load_cluster(plan.cluster)
    size = plan.size(stage)
    resources = Resources(
        nodes=plan.nodes(stage),
        gpus_per_node=plan.gpus_per_node(stage, cluster),
        cpus_per_task=size.cpus_per_task,
        mem=size.mem,
        time_limit=size.time_limit,
    )
    return SlurmJob(
        cluster=plan.cluster,
        stage=stage,
        template=template,
        settings=settings,
        result=result,
        resources=resources,
        directory=directory or plan.stage_dir(stage),
        secrets=_secrets(plan, cluster, hub=hub, wandb=wandb),
    )


def _secrets(plan: Plan, cluster: Cluster, *, hub: bool, wandb: bool) -> dict[str, str]:
    secrets = {}
    if hub and cluster.hub.conn_id:
        secrets["hub"] = cluster.hub.conn_id
    if wandb and "wandb" in plan.recipe.logger and cluster.wandb_conn_id:
        secrets["wandb"] = cluster.wandb_conn_id
    return secrets
