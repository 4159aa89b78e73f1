"""Job specifications of all stages, built from the plan."""

from __future__ import annotations

from typing import Any

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.evaluation import Evaluation
from llm_bridge.config.hang import START_MINUTES, Hang
from llm_bridge.config.loader import load_cluster
from llm_bridge.config.recipe import Stage, TrainStage
from llm_bridge.config.verl_settings import MODEL, TEMPLATE_OPTIONS, Training
from llm_bridge.naming import slug
from llm_bridge.operators.hub import upload_settings
from llm_bridge.pipeline import publication
from llm_bridge.pipeline.plan import RESPONSE_LENGTH, TRAINING, Plan
from llm_bridge.ray.spec import RayJob
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm import fingerprint
from llm_bridge.slurm.spec import Resources, SlurmJob, StageOutput
from llm_bridge.slurm.time_limit import total

# verl's default of data.max_response_length (ppo_trainer.yaml).
VERL_RESPONSE_LENGTH = 512


def prepare(plan: Plan) -> SlurmJob:
    """Return the job that downloads data and base model, unless they exist."""
    recipe = plan.recipe
    data = _data(plan)
    origins = [source["source"] for entry in data for source in entry["specification"]["sources"]]
    models = [recipe.base_model, *filter(None, [plan.start and plan.start.model])]
    from_hub = not all(origin.startswith("/") for origin in (*origins, *models))
    settings = {
        "data": data,
        "base_model": recipe.base_model,
        "model_dir": plan.base_model_path,
        "trust_remote_code": any(
            bool(_verl_value(plan, stage, f"{model}.trust_remote_code")) for stage, model in MODEL.items()
        ),
        # SFT saves its template with the model, so PPO needs one of its own only where it starts from the base model.
        "chat_templates": {
            f"{stage}.verl.{model}.custom_chat_template": _verl_value(
                plan, stage, f"{model}.custom_chat_template"
            )
            for stage, model in MODEL.items()
            if stage in plan.prepared
            and (stage == "sft" or plan.ppo_starts_from == plan.base_model_path)
            and not _verl_value(plan, stage, "data.custom_cls.path")
        },
        "trainings": trainings(plan),
        **({"reward_trial": recipe.ppo.reward_trial} if recipe.ppo.reward_trial != "refuse" else {}),
        **_evaluation_to_check(plan),
        **_start_model(plan),
    }
    shared = [
        *(entry["directory"] for entry in data),
        plan.base_model_path,
        *filter(None, [plan.given("sft")]),
    ]
    # As inputs, what the run starts from is in use from here on: keep_runs leaves the run that made it.
    output = _output(plan, "prepare", inputs=plan.taken_over, shared=shared)
    return _job(plan, "prepare", "prepare", settings, output, hub=from_hub, wandb=True)


def _data(plan: Plan) -> list[dict[str, Any]]:
    """Return the data to prepare for the training stages; stages with the same data share a directory."""
    found: dict[str, dict[str, Any]] = {}
    for stage in plan.prepared:
        directory = plan.data_dir(stage)
        entry = {"directory": directory, "specification": plan.data(stage).specification(), "stages": []}
        found.setdefault(directory, entry)["stages"] += [stage]
    return list(found.values())


def trainings(plan: Plan) -> dict[Stage, dict[str, Any]]:
    """Return the settings of each prepared training stage, from which the node programs make verl's arguments."""
    found: dict[Stage, dict[str, Any]] = {}
    if "sft" in plan.prepared:
        gpus = plan.gpus_per_node("sft", load_cluster(plan.cluster))
        found["sft"] = {**sft(plan).settings, "nodes": plan.nodes("sft"), "gpus_per_node": gpus}
    if "ppo" in plan.prepared:
        found["ppo"] = ppo(plan).settings
    return found


def sft(plan: Plan) -> SlurmJob:
    """Return the job of supervised fine-tuning, on one or many nodes."""
    checkpoints = f"{plan.stage_dir('sft')}/checkpoints"
    settings = {
        "model_path": plan.base_model_path,
        "checkpoint_dir": checkpoints,
        "keep": plan.recipe.sft.keep,
        "verl": plan.recipe.sft.verl,
        "preflight": _preflight(plan, "sft"),
        **_tune(plan),
        **_training(plan, "sft"),
    }
    settings |= _wandb_run(plan, "sft", settings)
    output = _output(plan, "sft", inputs=[plan.data_dir("sft")], outputs=[checkpoints])
    job = _job(plan, "sft", "sft", settings, output, wandb=True)
    return job.model_copy(update={"hang": _hang(plan, plan.recipe.sft), "signal_before_timeout": True})


def sft_merge(plan: Plan) -> SlurmJob:
    """Return the job that merges SFT's sharded checkpoint into one model folder."""
    settings = {
        "checkpoint_dir": f"{plan.stage_dir('sft')}/checkpoints",
        "component": None,
        "trained_from": plan.base_model_path,
        "output_dir": plan.sft_model,
        **_adapter(plan, plan.sft_model),
    }
    output = _output(plan, "sft", inputs=[plan.stage_dir("sft")], outputs=[plan.sft_model])
    return _job(plan, "merge", "merge", settings, output, directory=plan.sft_merge_dir)


def ray_cluster(plan: Plan) -> SlurmJob:
    """Return the job of the Ray cluster that PPO runs on."""
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
    return job.model_copy(update={"signal_before_timeout": True})


def sft_then_ray(plan: Plan) -> SlurmJob:
    """Return one job for SFT, its merge and the Ray cluster for PPO, one after the other in one allocation."""
    parts, cluster = (sft(plan), sft_merge(plan)), ray_cluster(plan)
    settings = {**parts[1].settings, **parts[0].settings, **cluster.settings}
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
        update={**more, "template": "sft_then_ray", "produces": parts, "ready_file": attempt_dir.SFT_DONE}
    )


def sft_job(plan: Plan) -> SlurmJob:
    """Return the job that SFT runs in: its own, or the shared one."""
    return sft_then_ray(plan) if plan.allocation == "shared" else sft(plan)


def prequeued_ray_cluster(plan: Plan) -> SlurmJob | None:
    """Return the job of the Ray cluster that is queued while SFT runs; None for the other allocations."""
    if plan.allocation != "queue_ahead":
        return None
    return ray_cluster(plan).model_copy(update={"directory": plan.prequeued_dir})


def ppo(plan: Plan) -> RayJob:
    """Return the Ray job of PPO."""
    cluster = load_cluster(plan.cluster)
    checkpoints = f"{plan.stage_dir('ppo')}/checkpoints"
    settings = {
        "actor_path": plan.ppo_starts_from,
        **({"critic_path": plan.ppo_starts_from} if plan.has_critic else {}),
        "checkpoint_dir": checkpoints,
        "nodes": plan.nodes("ppo"),
        "gpus_per_node": plan.gpus_per_node("ppo", cluster),
        "keep": plan.recipe.ppo.keep,
        "verl": plan.recipe.ppo.verl,
        **_reward(plan),
        **_training(plan, "ppo"),
        **_started_from(plan),
    }
    settings |= _wandb_run(plan, "ppo", settings)
    inputs = plan.sft_input if plan.ppo_starts_from == plan.sft_model else []
    output = _output(plan, "ppo", inputs=[*inputs, plan.data_dir("ppo")], outputs=[checkpoints])
    return RayJob(
        program="ppo",
        settings=settings,
        directory=plan.stage_dir("ppo"),
        output=output,
        hang=_hang(plan, plan.recipe.ppo),
    )


def merge(plan: Plan) -> SlurmJob:
    """Return the job that merges PPO's actor into one model folder."""
    settings = {
        "checkpoint_dir": plan.ppo_checkpoints,
        "component": "actor",
        "trained_from": plan.ppo_starts_from,
        "output_dir": plan.ppo_model,
        **_adapter(plan, plan.ppo_model),
        **_started_from(plan),
    }
    output = _output(plan, "merge", inputs=plan.ppo_input, outputs=[plan.ppo_model])
    return _job(plan, "merge", "merge", settings, output)


def evaluate(plan: Plan) -> SlurmJob:
    """Return the job that compares base, SFT and RL model on the held-out rows."""
    recipe, cluster = plan.recipe, load_cluster(plan.cluster)
    wanted = recipe.evaluate or Evaluation()
    answers = f"{plan.stage_dir('evaluate')}/{attempt_dir.EVALUATION_ANSWERS}"
    max_tokens = wanted.decoding.max_tokens or _verl_value(plan, "ppo", RESPONSE_LENGTH)
    publishes = "upload" in plan.stages and recipe.publish.better_than == "published"
    settings = {
        "models": plan.evaluated,
        "tokenizer": plan.base_model_path,
        "trust_remote_code": any(
            bool(_verl_value(plan, stage, f"{model}.trust_remote_code")) for stage, model in MODEL.items()
        ),
        "chat_template": _chat_template(plan),
        "template_options": _template_options(plan),
        "test_file": f"{plan.data_dir(plan.evaluates_data_of)}/test.parquet",
        "reward": recipe.ppo.reward.settings() if recipe.ppo.reward else None,
        "rows": wanted.rows,
        "seed": wanted.seed,
        "samples": wanted.samples,
        "decoding": {**wanted.decoding.model_dump(), "max_tokens": max_tokens or VERL_RESPONSE_LENGTH},
        "harness": wanted.harness,
        **(
            {"harness_chat_template": wanted.harness_chat_template, "harness_hours": wanted.harness_hours}
            if wanted.harness
            else {}
        ),
        "device": cluster.device,
        "gpus": plan.gpus_per_node("evaluate", cluster),
        "published": recipe.hub.repo_id if publishes else None,
        "answers_file": answers,
        "logger": list(recipe.logger),
        "project_name": recipe.wandb.project,
        "experiment_name": plan.run_name,
        "wandb_entity": recipe.wandb.entity,
        **_started_from(plan),
    }
    settings |= _wandb_run(plan, "evaluate", settings)
    made_by = [
        *(plan.sft_input if "sft" in plan.evaluated else []),
        *([plan.result_dir("merge")] if "rl" in plan.evaluated else []),
    ]
    inputs = [plan.data_dir(plan.evaluates_data_of), *made_by]
    output = _output(plan, "evaluate", inputs=inputs, outputs=[answers])
    return _job(plan, "evaluate", "evaluate", settings, output, hub=publishes, wandb=True)


def _chat_template(plan: Plan) -> str | None:
    """Return the recipe's chat template: in a run with RL its own, else SFT's, which is saved with SFT's model."""
    stages: list[Training] = ["ppo", "sft"] if plan.evaluates_data_of == "ppo" else ["sft"]
    found = (_verl_value(plan, stage, f"{MODEL[stage]}.custom_chat_template") for stage in stages)
    template: str | None = next(filter(None, found), None)
    return template


def _template_options(plan: Plan) -> dict[str, Any]:
    """Return verl's ``data.apply_chat_template_kwargs`` of the stage whose data are evaluated."""
    key = TEMPLATE_OPTIONS
    found: dict[str, Any] = {}
    for name, value in getattr(plan.recipe, plan.evaluates_data_of).verl.items():
        plain = name.lstrip("+")
        if plain == key and isinstance(value, dict):
            found |= value
        elif plain.startswith(f"{key}."):
            found[plain.removeprefix(f"{key}.")] = value
    return found


def _evaluation_to_check(plan: Plan) -> dict[str, Any]:
    """Return the settings with which ``prepare`` makes the prompts, and tries the reward where it does not try RL's."""
    if "evaluate" not in plan.stages:
        return {}
    settings = evaluate(plan).settings
    keys = ("test_file", "rows", "seed", "tokenizer", "trust_remote_code", "chat_template")
    found = {"evaluation": {key: settings[key] for key in (*keys, "template_options", "decoding", "harness")}}
    if "ppo" not in plan.prepared:
        reward = {"train_files": settings["test_file"], "verl": {}, **_reward(plan)}
        found["evaluation_reward"] = reward
    return found


def upload(plan: Plan) -> SlurmJob:
    """Return the job that uploads the final model to the Hub."""
    hub = plan.recipe.hub
    inputs = [plan.result_dir("merge")] if plan.has("merge") else [*plan.sft_input]
    if "evaluate" in plan.stages:  # the card has its scores
        inputs.append(plan.stage_dir("evaluate"))
    settings = upload_settings(plan.final_model, hub.repo_id, hub.private) | publication.settings(plan)
    settings |= _started_from(plan)
    return _job(plan, "upload", "upload", settings, _output(plan, "upload", inputs=inputs), hub=True)


def _output(plan: Plan, stage: Stage, **paths: list[str]) -> StageOutput:
    return StageOutput(force=stage in plan.force_stages, **paths)


def _adapter(plan: Plan, model: str) -> dict[str, str]:
    """Return the setting with which a merge leaves the adapter as it is: the base model's repository.

    It is omitted otherwise, so that other merges keep their fingerprints.
    """
    is_adapter = plan.publishes_adapter and model == plan.final_model
    return {"adapter_of": plan.recipe.base_model} if is_adapter else {}


def _started_from(plan: Plan) -> dict[str, str]:
    """Return the identity of the model or the checkpoints that the run starts from; nothing in any other run.

    With other files at the same path, the stages that take them start from zero. Another run's results are inputs.
    """
    return {"started_from": plan.start.id} if plan.start and plan.start.id else {}


def _start_model(plan: Plan) -> dict[str, Any]:
    """Return the setting with which ``prepare`` downloads or checks the model that the run starts from."""
    if not plan.start or not (path := plan.given("sft")):
        return {}
    trains = "ppo" in plan.stages and not _verl_value(plan, "ppo", "data.custom_cls.path")
    key = f"{MODEL['ppo']}.custom_chat_template"
    templates = {f"ppo.verl.{key}": _verl_value(plan, "ppo", key)} if trains else {}
    return {"start_model": {"source": plan.start.model, "directory": path, "chat_templates": templates}}


def _reward(plan: Plan) -> dict[str, Any]:
    """Return the setting of the recipe's reward; it is omitted without one, so that such runs keep their fingerprints.

    It does not include the code of built-in rewards, like all of llm-bridge's own code (``slurm/fingerprint.py``).
    """
    reward = plan.recipe.ppo.reward
    return {"reward": reward.settings()} if reward else {}


def _training(plan: Plan, stage: Stage) -> dict[str, Any]:
    """Return the settings that SFT and PPO have in common."""
    return {
        "train_files": f"{plan.data_dir(stage)}/train.parquet",
        "val_files": f"{plan.data_dir(stage)}/test.parquet",
        "device": load_cluster(plan.cluster).device,
        "logger": list(plan.recipe.logger),
        "project_name": plan.recipe.wandb.project,
        "experiment_name": plan.run_name,
        "wandb_entity": plan.recipe.wandb.entity,
    }


def _tune(plan: Plan) -> dict[str, str]:
    """Return the settings of SFT's tuner; none where it is off."""
    mode = plan.recipe.sft.tune
    return {} if mode == "off" else {"tune": mode, "tuning_dir": f"{plan.workspace}/{attempt_dir.TUNING}"}


def _wandb_run(plan: Plan, stage: Stage, settings: dict[str, Any]) -> dict[str, str]:
    """Return the id of a stage's W&B run: the same one in every attempt, another one where it starts from zero.

    With settings that change its result, a stage starts from zero (``slurm/fingerprint.py``); W&B would drop the steps
    that the run already has.
    """
    if "wandb" not in plan.recipe.logger:
        return {}
    size = [plan.nodes(stage), plan.gpus_per_node(stage, load_cluster(plan.cluster))]
    digest = fingerprint.compute(plan.stage_dir(stage), settings | {"size": size})
    # W&B allows at most 64 characters, and none of /\\#?%:
    return {"wandb_run_id": f"{slug(plan.run_name, 40)}-{stage}-{digest[:12]}".replace(".", "-")}


def _verl_value(plan: Plan, stage: Stage, key: str) -> Any:
    """Return a verl setting of the recipe; None where it is not set."""
    given: dict[str, Any] = getattr(plan.recipe, stage).verl
    return next((value for name, value in given.items() if name.lstrip("+") == key), None)


def _hang(plan: Plan, stage: TrainStage) -> Hang | None:
    """Return the hang limits of a training: the recipe's, else the cluster file's."""
    cluster = load_cluster(plan.cluster)
    minutes = cluster.hang_minutes if stage.hang_minutes is None else stage.hang_minutes
    return Hang.from_settings(minutes, stage.on_hang or cluster.on_hang, start_minutes=START_MINUTES)


def _preflight(plan: Plan, stage: Stage) -> dict[str, Any] | None:
    """Return the settings of the node checks (``remote/node/preflight``); None skips them."""
    cluster = load_cluster(plan.cluster)
    if cluster.preflight is None:
        return None
    expected = {"gpus_per_node": plan.gpus_per_node(stage, cluster), "device": cluster.device}
    ray = {"ray": stage == "ppo", "temp_dir": cluster.ray.temp_dir}
    return cluster.preflight.model_dump() | expected | ray


def _job(
    plan: Plan,
    stage: Stage,
    template: str,
    settings: dict[str, Any],
    output: StageOutput | None,
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
        output=output,
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
