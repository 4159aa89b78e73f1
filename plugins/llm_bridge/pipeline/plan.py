"""Plan of one run: the trigger form and the recipe, resolved and checked, with every path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.exceptions import AirflowSkipException
from pydantic import Field, field_validator

from llm_bridge.config import overrides, recipe_keys
from llm_bridge.config.cluster import Cluster
from llm_bridge.config.data import Data
from llm_bridge.config.loader import check_model, load_cluster
from llm_bridge.config.recipe import STAGES, Allocation, Recipe, Stage
from llm_bridge.config.reward import FUNCTION_KEYS, MODEL_KEYS, SANDBOX_KEYS
from llm_bridge.config.types import (
    AbsolutePath,
    Count,
    FrozenModel,
    HubId,
    HubIdOrPath,
    JobSize,
    SlurmWord,
    Text,
)
from llm_bridge.config.verl_settings import MODEL, Training, trains_adapter
from llm_bridge.exceptions import ConfigError
from llm_bridge.naming import slug
from llm_bridge.pipeline.start import SHARED, Start, StartStage, start_of
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.verl import hydra_args, ppo_rules, sft_rules

if TYPE_CHECKING:
    from airflow.sdk import Context

PREPARE, COMPARE = "prepare.run", "prepare.compare"
# Key in the result of the task COMPARE: the run that has trained the same, or None.
UNCHANGED = "unchanged_since"
# Stages that train, on all GPUs of their nodes; the others are small jobs on one node.
TRAINING: tuple[Stage, ...] = ("sft", "ppo")
# verl's limit of an answer in PPO, and that of an evaluation which sets none.
RESPONSE_LENGTH = "data.max_response_length"


class Form(FrozenModel):
    """Fields of the trigger form but those of single keys of the recipe. An empty field keeps the recipe's value."""

    # Both are looked up among the files.
    recipe: Text
    cluster: Text | None = None
    run_name: Text | None = Field(default=None, max_length=100)
    base_model: HubIdOrPath | None = None
    repo_id: HubId | None = None
    nodes: Count | None = None
    allocation: Allocation | None = None
    stages: list[Stage] = []
    force_stages: list[Stage] = []
    start_stage: StartStage | None = None
    start_from: Text | None = Field(default=None, max_length=500)
    overrides: str | None = None

    @field_validator(
        *("run_name", "base_model", "repo_id", "cluster", "allocation", "start_stage", "start_from"),
        mode="before",
    )
    @classmethod
    def _blank_is_empty(cls, value: Any) -> Any:
        # Pasted values often have blanks around them.
        return (value.strip() or None) if isinstance(value, str) else value

    @field_validator("stages", "force_stages", mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        return [] if value is None else value


class Plan(FrozenModel):
    """One run, resolved. It is passed between tasks as JSON, and has no secret.

    Attributes:
        run_name: Name of the experiment in W&B.
        cluster: Name of the cluster file.
        cluster_choice: Why it is this cluster of several; empty where there was no choice.
        recipe: The recipe, with the values of the form.
        stages: The stages that run, in order.
        force_stages: Stages that run although their results exist.
        changes: What the form's fields for keys of the recipe and its overrides change.
        start: What the run starts from instead of its own first stages.
        directory: ``WORKSPACE/DAG/RUN`` on the cluster.
        workspace: The cluster's workspace.
        unchanged_since: Earlier run that has trained the same; no stage is left then.
    """

    run_name: Text
    cluster: SlurmWord
    cluster_choice: str = ""
    recipe: Recipe
    stages: list[Stage]
    force_stages: list[Stage] = []
    changes: list[str] = []
    start: Start | None = None
    directory: AbsolutePath
    workspace: AbsolutePath
    unchanged_since: str | None = None

    def stage_dir(self, stage: Stage) -> str:
        """Return the directory of this run's own stage on the cluster."""
        return f"{self.directory}/{stage}"

    def has(self, stage: Stage) -> bool:
        """Return True if this run has the stage's result: it runs the stage, or starts from its result."""
        return stage in self.stages or (self.start is not None and stage in self.start.taken)

    def result_dir(self, stage: Stage) -> str:
        """Return the stage directory that has the stage's result: this run's own, or that of another run."""
        is_taken = self.start is not None and self.start.run is not None and stage in self.start.taken
        return f"{self.start.run}/{stage}" if self.start and is_taken else self.stage_dir(stage)

    def given(self, stage: Stage) -> str | None:
        """Return the model or the checkpoints that take the place of a stage's result; None where none do."""
        if not self.start or not self.start.model or stage not in self.start.taken:
            return None
        return self._model_path(self.start.model)

    @property
    def prepared(self) -> list[Stage]:
        """Training stages that ``prepare`` prepares and checks: this run's; without one, those of the recipe.

        So a run of ``prepare`` alone shows what the training would get.
        """
        if selected := [stage for stage in TRAINING if stage in self.stages]:
            return selected
        if self.start:
            return [self.evaluates_data_of]
        return [stage for stage in TRAINING if stage in self.recipe.stages]

    def data(self, stage: Stage) -> Data:
        """Return the data of a training stage: its own, or the recipe's."""
        own: Data | None = getattr(self.recipe, stage).data
        return own or self.recipe.data

    def data_limits(self, stage: Stage) -> dict[str, Any] | None:
        """Return what decides which rows are too long for a stage; None where such rows are kept.

        Lengths that the recipe does not set are those of the pinned verl.
        """
        if self.data(stage).too_long == "keep":
            return None
        decisive = ("max_length", "max_prompt_length", "apply_chat_template_kwargs", "custom_chat_template")
        given = {
            f"{name}.{key.lstrip('+')}": value
            for name in TRAINING
            for key, value in getattr(self.recipe, name).verl.items()
            if any(f".{word}" in key for word in decisive)
            and (name == stage or "custom_chat_template" in key)
        }
        return {"stage": stage, "base_model": self.recipe.base_model, **given}

    def data_dir(self, stage: Stage) -> str:
        """Return the directory of the prepared data of a training stage; all runs share it."""
        return f"{self.workspace}/data/{self.data(stage).folder(self.data_limits(stage))}"

    @property
    def base_model_path(self) -> str:
        """Directory of the base model; one from the Hub is shared by all runs."""
        return self._model_path(self.recipe.base_model)

    def _model_path(self, model: str) -> str:
        return model if model.startswith("/") else f"{self.workspace}/models/{model.replace('/', '--')}"

    @property
    def sft_merge_dir(self) -> str:
        """Stage directory of SFT's merge."""
        return f"{self.result_dir('sft')}/merge"

    @property
    def sft_model(self) -> str:
        """Directory of the merged model of SFT, or of the model that takes its place."""
        return self.given("sft") or f"{self.result_dir('sft')}/model"

    @property
    def sft_input(self) -> list[str]:
        """Stage whose result SFT's model is, as an input; none where a model that no run made takes its place."""
        given = self.given("sft")
        return self._made_by(given) if given else [self.sft_merge_dir]

    @property
    def ppo_input(self) -> list[str]:
        """Stage whose result PPO's checkpoints are, as an input; none where those of no run take their place."""
        given = self.given("ppo")
        return self._made_by(given) if given else [self.result_dir("ppo")]

    @property
    def taken_over(self) -> list[str]:
        """Stages of other runs whose results this run has from its start, as inputs."""
        made_by: dict[Stage, list[str]] = {
            "sft": self.sft_input,
            "ppo": self.ppo_input,
            "merge": [self.result_dir("merge")],
        }
        return [path for stage in (self.start.taken if self.start else ()) for path in made_by[stage]]

    def _made_by(self, path: str) -> list[str]:
        """Return the stage directory that has the result of a model or of checkpoints, if a run made them."""
        root = PurePosixPath(self.workspace)
        if root not in PurePosixPath(path).parents:
            return []
        parts = PurePosixPath(path).relative_to(root).parts
        if len(parts) < 4 or parts[0] in SHARED:
            return []
        merged = ("merge",) if parts[2:4] == ("sft", "model") else ()
        return [str(root.joinpath(*parts[:3], *merged))]

    @property
    def ppo_checkpoints(self) -> str:
        """Directory of PPO's checkpoints."""
        return self.given("ppo") or f"{self.result_dir('ppo')}/checkpoints"

    @property
    def ppo_model(self) -> str:
        """Directory of the merged model of PPO."""
        return f"{self.result_dir('merge')}/model"

    @property
    def ppo_starts_from(self) -> str:
        """Directory of PPO's initial model: SFT's, or the base model by ``init_from`` or in a run without SFT."""
        if self.start and self.start.ppo_from:
            return self.start.ppo_from
        from_sft = self.recipe.ppo.init_from == "sft" and self.has("sft")
        return self.sft_model if from_sft else self.base_model_path

    @property
    def final_model(self) -> str:
        """Directory of the model to upload: PPO's, or SFT's in a run without PPO."""
        return self.ppo_model if self.has("merge") else self.sft_model

    @property
    def final(self) -> Literal["sft", "rl"]:
        """Name of the model to upload in the evaluation."""
        return "rl" if self.has("merge") else "sft"

    @property
    def evaluated(self) -> dict[str, str]:
        """Name -> directory of each model that is evaluated: base, sft and rl, as far as this run has them."""
        return {
            "base": self.base_model_path,
            **({"sft": self.sft_model} if self.has("sft") else {}),
            **({"rl": self.ppo_model} if self.has("merge") else {}),
        }

    @property
    def evaluates_data_of(self) -> Training:
        """Training stage on whose held-out rows the models are evaluated: RL, or SFT in a run without RL."""
        with_rl = self.has("ppo") or self.has("merge") or (self.start and "ppo" in self.recipe.stages)
        return "ppo" if with_rl else "sft"

    @property
    def publishes_adapter(self) -> bool:
        """True if the model to upload is a LoRA adapter, and not a model with the adapter merged into it."""
        return self.recipe.hub.lora == "adapter" and "upload" in self.stages

    @property
    def has_critic(self) -> bool:
        """True if PPO trains a critic beside the actor."""
        return ppo_rules.needs_critic(ppo_rules.in_recipe(self.recipe.ppo.verl))

    @property
    def allocation(self) -> Allocation:
        """Allocation of this run: the recipe's, but ``per_stage`` unless both SFT and PPO run."""
        both = {"sft", "ppo"} <= set(self.stages)
        return self.recipe.allocation if both else "per_stage"

    @property
    def prequeued_dir(self) -> str:
        """Stage directory of Ray clusters that were queued while SFT ran."""
        return f"{self.stage_dir('ppo')}/{attempt_dir.PREQUEUED}"

    def size(self, stage: Stage) -> JobSize:
        """Return the recipe's resources of a stage."""
        size: JobSize | None = getattr(self.recipe, stage)
        return size or JobSize()

    def nodes(self, stage: Stage) -> int:
        """Return the number of nodes of a stage."""
        return self.size(stage).nodes or (self.recipe.nodes if stage in TRAINING else 1)

    def gpus_per_node(self, stage: Stage, cluster: Cluster) -> int:
        """Return the number of GPUs on each node of a stage."""
        wanted = self.size(stage).gpus_per_node
        if stage == "evaluate":
            return wanted or (1 if cluster.device == "cuda" else 0)
        if stage not in TRAINING:
            return wanted or 0
        return wanted or self.recipe.gpus_per_node or cluster.gpus_per_node


def clusters_of(params: dict[str, Any]) -> list[str]:
    """Return the names of the clusters that may take a run: that of the form, or else those of the recipe.

    Args:
        params: The form's fields.

    Raises:
        ConfigError: The form or the recipe is wrong.
    """
    form, given = _read_form(params)
    if form.cluster:
        return [form.cluster]
    recipe, _ = recipe_keys.load_with(form.recipe, given)
    return recipe.clusters or [name for name in [recipe.cluster] if name]


def make_plan(params: dict[str, Any], dag_id: str, run_id: str, *, cluster_name: str | None = None) -> Plan:
    """Resolve the form against recipe and cluster file.

    Args:
        params: The form's fields.
        dag_id: The DAG.
        run_id: The run.
        cluster_name: The cluster, of :func:`clusters_of`; None for the first of them.

    Raises:
        ConfigError: An error that can be found without a connection to the cluster.
    """
    form, given = _read_form(params)
    recipe, cluster, changed = _load(form, given, cluster_name)
    lines = overrides.parse(form.overrides or "")
    if twice := [*recipe_keys.set_twice(given, lines)]:
        raise ConfigError("the trigger form, overrides:\n  - " + "\n  - ".join(twice))
    recipe, changed_by_lines = overrides.apply(recipe, lines)
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
    directory = f"{cluster.workspace}/{slug(dag_id)}/{slug(run_id)}"
    start = start_of(form.start_stage, form.start_from, directory, cluster.workspace)
    plan = Plan(
        run_name=form.run_name or run_id,
        cluster=cluster.name,
        recipe=recipe.model_copy(update=changes),
        stages=_stages(form, recipe, start),
        force_stages=form.force_stages,
        changes=changed + changed_by_lines,
        start=start,
        directory=directory,
        workspace=cluster.workspace,
    )
    check_combinations(plan, cluster)
    return plan


def plan_of(context: Context) -> Plan:
    """Return the plan of the run, made by its task ``check``; without stages if nothing has changed."""
    ti: Any = context["ti"]
    plan = Plan.model_validate(ti.xcom_pull(task_ids="check"))
    # COMPARE itself needs the whole plan, as does the task before it, which is cleared with it.
    if ti.task_id in (PREPARE, COMPARE):
        return plan
    since = (ti.xcom_pull(task_ids=COMPARE) or {}).get(UNCHANGED)
    return plan.model_copy(update={"stages": [], UNCHANGED: since}) if since else plan


def skip_unless_selected(plan: Plan, stage: Stage) -> None:
    """Skip the current task where the run does not have its stage.

    Args:
        plan: The run's plan.
        stage: The task's stage.

    Raises:
        AirflowSkipException: Says why.
    """
    if stage in plan.stages:
        return
    if plan.unchanged_since:
        raise AirflowSkipException(f"nothing has changed since run {plan.unchanged_since} has trained")
    raise AirflowSkipException(
        f"stage {stage!r} is not selected for this run; selected: {', '.join(plan.stages)}"
    )


def _read_form(params: dict[str, Any]) -> tuple[Form, dict[str, Any]]:
    """Return the form, and of its fields for keys of the recipe those that are not empty.

    Raises:
        ConfigError: There is no such field, or a value is wrong.
    """
    own = {name: value for name, value in params.items() if name not in recipe_keys.KEYS}
    if wrong := [name for name in own if "." in name]:
        raise ConfigError(
            f"the trigger form: {', '.join(wrong)}: no such field. Keys of a recipe with a field are "
            f"{', '.join(recipe_keys.KEYS)}; other settings of verl are lines of overrides, other keys are set in a "
            "recipe"
        )
    return check_model(Form, own, "the trigger form"), recipe_keys.given_in(params)


def _stages(form: Form, recipe: Recipe, start: Start | None) -> list[Stage]:
    """Return the stages of a run, in order.

    A recipe without the key ``evaluate`` has no such stage, and one with ``publish: never`` has no upload.
    """
    left_out = {"evaluate": not recipe.evaluate, "upload": recipe.publish.never}
    given = form.stages or [stage for stage in recipe.stages if not left_out.get(stage)]
    # The first stage is wanted although the recipe may not have it; data are prepared in any case.
    skipped = start.replaced if start and not form.stages else ()
    wanted = {*given, start.stage} if start and not form.stages else {*given}
    return [stage for stage in STAGES if stage in wanted and stage not in skipped]


def _load(form: Form, given: dict[str, Any], cluster_name: str | None) -> tuple[Recipe, Cluster, list[str]]:
    """Return recipe and cluster of a form, and what the form changes in the recipe.

    Args:
        form: The form.
        given: Its fields for keys of the recipe.
        cluster_name: The cluster; None for that of the form or the recipe.

    Raises:
        ConfigError: Names the errors of both files.
    """
    errors: list[str] = []
    changes: list[str] = []
    recipe = cluster = None
    try:
        recipe, changes = recipe_keys.load_with(form.recipe, given)
    except ConfigError as error:
        errors.append(str(error))
    if recipe:
        cluster_name = cluster_name or form.cluster or recipe.cluster or next(iter(recipe.clusters), None)
    if cluster_name := cluster_name or form.cluster:
        try:
            cluster = load_cluster(cluster_name)
        except ConfigError as error:
            errors.append(str(error))
    elif recipe:
        errors.append(
            f"no cluster: choose one in the form, or set cluster or clusters in include/recipes/{recipe.name}.yaml"
        )
    if errors or recipe is None or cluster is None:
        raise ConfigError("\n".join(errors))
    return recipe, cluster, changes


def check_combinations(plan: Plan, cluster: Cluster) -> None:
    """Check combinations of fields, and what the programs on the nodes make of verl's settings.

    Raises:
        ConfigError: Names every combination that cannot work, and every setting that cannot be passed to verl.
    """
    problems = [
        *_wrong_sizes(plan, cluster),
        *_wrong_stages(plan),
        *_wrong_start(plan),
        *_unwritable_settings(plan),
    ]
    problems += [*_wrong_adapter(plan), *_wrong_data(plan), *_wrong_reward(plan)]
    problems += [*_wrong_sft(plan, cluster), *_wrong_ppo(plan, cluster)]
    problems += [*_wrong_evaluation(plan), *_wrong_publish(plan)]
    if problems:
        where = f"recipe {plan.recipe.name!r} on cluster {cluster.name!r}: "
        lines = problems if len(problems) == 1 else [f"{len(problems)} errors:", *problems]
        raise ConfigError(where + "\n  - ".join(lines), [f"{where}{len(problems)} error(s)", *problems])


def _wrong_sizes(plan: Plan, cluster: Cluster) -> Iterator[str]:
    for stage in plan.stages:
        needed = plan.gpus_per_node(stage, cluster)
        if needed > cluster.gpus_per_node:
            more = " and raise nodes instead" if stage in TRAINING else ""
            yield (
                f"stage {stage!r} needs {needed} GPUs per node, but a node has {cluster.gpus_per_node}: lower "
                f"gpus_per_node in include/recipes/{plan.recipe.name}.yaml{more}"
            )
    if plan.allocation == "shared":
        sizes = {s: (plan.nodes(s), plan.gpus_per_node(s, cluster)) for s in TRAINING}
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{s} {n} node(s) x {gpus} GPU(s)" for s, (n, gpus) in sizes.items())
            yield (
                f"allocation 'shared' gives SFT and PPO the same nodes, but they need {found}: make them "
                f"equal in include/recipes/{plan.recipe.name}.yaml, or choose allocation per_stage or queue_ahead"
            )


def _wrong_stages(plan: Plan) -> Iterator[str]:
    if not plan.stages:
        yield "no stage is left: 'evaluate' needs the key evaluate in the recipe. Choose other stages, or add it"
    if "upload" in plan.stages and not plan.recipe.hub.repo_id:
        yield "stage 'upload' needs repo_id, in the form or as hub.repo_id in the recipe"
    if "upload" in plan.stages and not (plan.has("sft") or plan.has("merge")):
        yield "stage 'upload' has no model to upload: choose 'merge' (PPO's) or 'sft' too, or give one in start_from"
    if "merge" in plan.stages and not plan.has("ppo"):
        yield (
            "stage 'merge' merges PPO's model ('sft' merges its own): leave it out, choose 'ppo' too, or give "
            "checkpoints or a run in start_from"
        )
    if "ppo" in plan.stages and "upload" in plan.stages and "merge" not in plan.stages:
        yield "PPO's model is uploaded from stage 'merge': choose it too"


def _wrong_start(plan: Plan) -> Iterator[str]:
    """Yield what of the form does not fit to what the run starts from."""
    start = plan.start
    if not start:
        return
    file = f"include/recipes/{plan.recipe.name}.yaml"
    if before := [stage for stage in plan.stages if stage in start.replaced]:
        yield (
            f"start_stage is {start.stage!r}, but stages has {', '.join(before)}, which {start.text} replaces: "
            f"remove {'it' if len(before) == 1 else 'them'} from stages"
        )
    if start.stage not in plan.stages:
        yield f"start_stage is {start.stage!r}, which stages does not have: add it, or leave stages empty"
    if start.stage == "ppo" and plan.recipe.ppo.init_from == "base":
        yield f"ppo.init_from is base in {file}, so PPO cannot start from {start.text}: remove that key, or start_from"
    if start.model and not start.model.startswith("/") and "prepare" not in plan.stages:
        yield f"start_from is {start.model!r} on the Hub, which stage 'prepare' downloads: choose it too"
    if plan.publishes_adapter:
        yield f"hub.lora is 'adapter', which cannot be combined with start_from: set it to merged in {file}"


def _wrong_data(plan: Plan) -> Iterator[str]:
    if "sft" in plan.stages and not plan.data("sft").has_responses:
        key = "sft.data" if plan.recipe.sft.data else "data"
        yield (
            f"{key}.columns has no response, from which SFT learns: set {key}.columns.response in "
            f"include/recipes/{plan.recipe.name}.yaml, give SFT other data (sft.data), or choose stages without 'sft'"
        )


def _wrong_adapter(plan: Plan) -> Iterator[str]:
    """Yield the reasons for which the Hub could not load the adapter that ``hub.lora: adapter`` publishes."""
    if not plan.publishes_adapter:
        return
    stage: Training = "ppo" if plan.final_model == plan.ppo_model else "sft"
    key = f"{stage}.verl: {MODEL[stage]}.lora_rank"
    file = f"include/recipes/{plan.recipe.name}.yaml"
    if not trains_adapter(stage, getattr(plan.recipe, stage).verl):
        yield f"hub.lora is 'adapter', but {stage} trains all weights: set {key} in {file}, or hub.lora to merged"
    elif stage == "ppo" and plan.ppo_starts_from != plan.base_model_path:
        yield (
            "hub.lora is 'adapter', but PPO starts from SFT's model, which is not on the Hub, so PPO's adapter "
            f"could not be loaded from there. Set hub.lora to merged, or ppo.init_from to base, in {file}"
        )
    elif plan.recipe.base_model.startswith("/"):
        yield (
            f"hub.lora is 'adapter', but base_model is the path {plan.recipe.base_model}: an adapter names its base "
            "model by OWNER/NAME on the Hub. Set base_model to that, or hub.lora to merged"
        )


def _wrong_reward(plan: Plan) -> Iterator[str]:
    reward = plan.recipe.ppo.reward
    if "ppo" in plan.stages and reward and (keys := reward.conflicts(plan.recipe.ppo.verl)):
        yield (
            f"ppo.reward and {', '.join(keys)} under ppo.verl both set the reward: remove one of them in "
            f"include/recipes/{plan.recipe.name}.yaml"
        )


def _wrong_sft(plan: Plan, cluster: Cluster) -> Iterator[str]:
    """Yield the settings of SFT that verl would refuse on the GPUs."""
    if "sft" in plan.stages:
        gpus = plan.nodes("sft") * plan.gpus_per_node("sft", cluster)
        for problem in sft_rules.problems(sft_rules.in_recipe(plan.recipe.sft.verl), gpus):
            yield f"sft.verl: {problem}"


def _wrong_evaluation(plan: Plan) -> Iterator[str]:
    """Yield the reasons for which the models of this run cannot be evaluated."""
    if "evaluate" not in plan.stages:
        return
    file = f"include/recipes/{plan.recipe.name}.yaml"
    if not plan.recipe.evaluate:
        yield f"stage 'evaluate' needs the key evaluate in {file}, such as evaluate: {{rows: 500}}"
    if not (plan.has("sft") or plan.has("merge")):
        yield "stage 'evaluate' has no model to compare with the base model: choose 'merge' (PPO's) or 'sft' too"
    reward, verl = plan.recipe.ppo.reward, plan.recipe.ppo.verl
    length = next((verl[key] for key in verl if key.lstrip("+") == RESPONSE_LENGTH), None)
    given = plan.recipe.evaluate and plan.recipe.evaluate.decoding.max_tokens
    if not given and length is not None and (type(length) is not int or length < 1):
        yield (
            f"stage 'evaluate' limits its answers by ppo.verl's {RESPONSE_LENGTH}, which must be a number of tokens, "
            f"and not {length!r}: correct it, or set evaluate.decoding.max_tokens in {file}"
        )
    if reward and reward.model:
        yield (
            "stage 'evaluate' cannot score with ppo.reward.model, which needs GPUs of its own: choose stages without "
            f"it, remove evaluate from {file}, or set another ppo.reward"
        )
    chosen = (*FUNCTION_KEYS, *MODEL_KEYS, *SANDBOX_KEYS)
    if by_hand := [key for key in verl if key.lstrip("+").startswith(chosen)]:
        yield (
            f"stage 'evaluate' scores with ppo.reward, but {', '.join(by_hand)} under ppo.verl set the reward: set it "
            f"as ppo.reward in {file} (docs/rewards.md), or choose stages without 'evaluate'"
        )


def _wrong_publish(plan: Plan) -> Iterator[str]:
    """Yield the conditions of ``publish`` that could never hold in this run."""
    publish = plan.recipe.publish
    if "upload" not in plan.stages:
        return
    if publish.never:
        yield "publish is 'never', but stage 'upload' is selected: choose stages without it, or change publish"
    if not publish.needs_evaluation:
        return
    file = f"include/recipes/{plan.recipe.name}.yaml"
    if "evaluate" not in plan.stages:
        key = "min_score" if publish.min_score is not None else "better_than"
        advice = "choose stage 'evaluate' too" if plan.recipe.evaluate else f"add the key evaluate to {file}"
        yield f"publish.{key} compares scores, but this run does not evaluate: {advice}, or change publish"
    if publish.better_than == "published" and not plan.recipe.hub.card:
        yield (
            "publish.better_than is 'published', whose score is read from its model card, but hub.card is false: "
            f"remove hub.card, or set publish.better_than to base in {file}"
        )
    if publish.better_than == "sft" and (plan.final == "sft" or not plan.has("sft")):
        yield (
            "publish.better_than is 'sft', but this run does not have both an SFT and an RL model: choose stages "
            f"'sft', 'ppo' and 'merge', or set publish.better_than to base in {file}"
        )


def _wrong_ppo(plan: Plan, cluster: Cluster) -> Iterator[str]:
    """Yield the settings of PPO that verl would ignore, get wrong, or refuse on the GPUs."""
    if "ppo" not in plan.stages:
        return
    verl, algorithm = plan.recipe.ppo.verl, plan.recipe.ppo.algorithm
    gpus = plan.nodes("ppo") * plan.gpus_per_node("ppo", cluster)
    for problem in ppo_rules.problems(ppo_rules.in_recipe(verl), gpus):
        yield f"ppo.verl: {problem}"
    # With the default algorithm, a change of the estimator alone leaves them to the log of check.
    if algorithm != "ppo" and (unused := ppo_rules.unused_critic_keys(verl)):
        yield f"ppo.algorithm {algorithm} has no critic: remove {', '.join(unused)} from ppo.verl"


def _unwritable_settings(plan: Plan) -> Iterator[str]:
    """Yield the verl settings that cannot be passed to verl, as the program on the node would."""
    for stage in TRAINING:
        if stage not in plan.stages:
            continue
        for key, value in getattr(plan.recipe, stage).verl.items():
            where = f"{stage}.verl in include/recipes/{plan.recipe.name}.yaml or in the form's overrides"
            try:
                hydra_args.override(key, value)
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                # The plan is passed between tasks as JSON, which has no infinity and no "not a number".
                yield f"{where}: {key}={value!r} cannot be passed to verl: {error}"
