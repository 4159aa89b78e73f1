"""Start of a run at a later stage, by the fields ``start_stage`` and ``start_from`` of the trigger form.

A run starts from a model, from checkpoints of RL, or from another run, whose finished stages are taken over. The form
alone decides which: a text without "/" is the id of a run of this DAG, ``WORKSPACE/DAG/RUN`` the directory of any run,
OWNER/NAME a model on the Hub, and any other absolute path a model folder, or in front of ``merge`` a directory of
checkpoints.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, get_args

from llm_bridge.config.recipe import STAGES, Stage
from llm_bridge.config.types import AbsolutePath, FrozenModel, HubIdOrPath, hub_id_or_path
from llm_bridge.exceptions import ConfigError
from llm_bridge.naming import slug
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.messages import StartAnswer, StartRequest

if TYPE_CHECKING:
    from llm_bridge.slurm.client import SlurmClient

StartStage = Literal["ppo", "merge", "evaluate", "upload"]
# Folders of the workspace that are no DAGs.
SHARED = ("models", "data", attempt_dir.TUNING)
# Stages of another run that a stage may take over, if they are there.
_TAKEN: dict[StartStage, list[Stage]] = {
    "ppo": ["sft"],
    "merge": ["sft", "ppo"],
    "evaluate": ["sft", "merge"],
    "upload": ["sft", "merge"],
}
SETTING = "start_from in the trigger form"


class Start(FrozenModel):
    """Start of a run at a later stage.

    Attributes:
        stage: The first stage that runs; ``prepare`` runs besides, because data and base model are needed anyway.
        model: Model or, in front of ``merge``, checkpoints: OWNER/NAME on the Hub, or a path on the cluster.
        run: Directory of another run.
        taken: Stages whose results the run has from ``model`` or ``run``. A model takes the place of SFT's.
        id: Identity of the files of ``model``, found by the task ``check``; empty on the Hub.
        results: Stage -> id of the result that ``check`` found in ``run``.
        ppo_from: Model from which the RL of ``run`` started.
    """

    stage: StartStage
    model: HubIdOrPath | None = None
    run: AbsolutePath | None = None
    taken: list[Stage] = []
    id: str = ""
    results: dict[Stage, str] = {}
    ppo_from: str | None = None

    @property
    def replaced(self) -> list[Stage]:
        """The stages before the first one, which do not run."""
        return [stage for stage in STAGES[: STAGES.index(self.stage)] if stage != "prepare"]

    @property
    def text(self) -> str:
        """Name of it for people."""
        if self.run:
            return f"run {PurePosixPath(self.run).name}"
        return f"{'checkpoints' if self.stage == 'merge' else 'model'} {self.model}"

    @property
    def description(self) -> str:
        """Name of it with the first stage, for summary and model card."""
        return f"{self.text}, at stage {self.stage}"


def start_of(stage: StartStage | None, source: str | None, directory: str, workspace: str) -> Start | None:
    """Return what a run starts from; None for a run from its own first stage.

    Args:
        stage: The form's ``start_stage``.
        source: The form's ``start_from``.
        directory: The run's directory on the cluster.
        workspace: The cluster's workspace.

    Raises:
        ConfigError: One of the fields is missing, or ``source`` is nothing that a run can start from.
    """
    if not stage and not source:
        return None
    if not source:
        raise ConfigError(
            f"the trigger form: start_stage is {stage!r}, but start_from is empty: set it to a model (OWNER/NAME or a "
            "path on the cluster) or to the id or directory of another run, or leave start_stage empty"
        )
    if not stage:
        raise ConfigError(
            f"the trigger form: start_from is {source!r}, but start_stage is empty: choose the first stage that runs, "
            f"one of {', '.join(get_args(StartStage))}. (To train SFT from another model, set base_model.)"
        )
    run = _run_directory(source, directory, workspace)
    if run == directory:
        raise ConfigError("the trigger form: start_from is this run itself: name another one")
    if run:
        return Start(stage=stage, run=run, taken=_TAKEN[stage])
    try:
        model = hub_id_or_path(source)
    except ValueError as error:
        raise ConfigError(
            f"the trigger form: start_from: {error}, or the id of a run (got {source!r})"
        ) from None
    if stage == "merge" and not model.startswith("/"):
        raise ConfigError(
            f"the trigger form: start_stage is 'merge', but start_from is {source!r}: 'merge' merges checkpoints, so "
            "set it to their absolute path on the cluster (.../ppo/checkpoints), or to a run"
        )
    return Start(stage=stage, model=model, taken=["ppo" if stage == "merge" else "sft"])


def _run_directory(source: str, directory: str, workspace: str) -> str | None:
    """Return the directory of the run that ``source`` names; None where it names something else."""
    if "/" not in source:
        return f"{PurePosixPath(directory).parent}/{slug(source)}"
    path, root = PurePosixPath(source), PurePosixPath(workspace)
    if root not in path.parents or ".." in path.parts:
        return None
    parts = path.relative_to(root).parts
    return str(path) if len(parts) == 2 and parts[0] not in SHARED else None


async def look_up(client: SlurmClient, start: Start, base_model: str, problems: list[str]) -> Start:
    """Return the start with what the cluster has of it.

    Args:
        client: Client of the cluster.
        start: The start.
        base_model: Directory of the run's base model.
        problems: List to which everything that is missing is added.
    """
    if start.model and not start.model.startswith("/"):
        return start  # on the Hub: prepare downloads and checks it
    request = StartRequest(
        setting=SETTING, stage=start.stage, path=start.run or start.model or "", is_run=start.run is not None
    )
    answer: StartAnswer = await client.call_helper("start_from", request, StartAnswer)
    problems += answer.problems
    trained_from = answer.base_model
    if trained_from and trained_from != base_model and not answer.problems:
        problems.append(
            f"{SETTING}: SFT of {start.text} was trained from {trained_from}, but this run's base_model is in "
            f"{base_model}: set base_model to the same model"
        )
    if answer.problems or not start.run:
        return start.model_copy(update={"id": answer.id})
    results = {stage: answer.results[stage] for stage in start.taken if stage in answer.results}
    found = {"taken": [*results], "results": results, "ppo_from": answer.ppo_from or None}
    return start.model_copy(update=found)
