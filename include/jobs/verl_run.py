"""What SFT and PPO share: how verl is configured, how long it has to train, and how the end is judged."""

from __future__ import annotations

import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import checkpoints
from job_io import JobError, Settings, say


def trainer_settings(settings: Settings, nodes: int, gpus_per_node: int) -> dict[str, Any]:
    """verl's ``trainer.*`` and ``data.*`` settings that llm-bridge sets for both stages; the recipe's come later."""
    return {
        "data.train_files": settings["train_files"],
        "data.val_files": settings["val_files"],
        "trainer.default_local_dir": settings["checkpoint_dir"],
        "trainer.device": settings["device"],
        "trainer.nnodes": nodes,
        "trainer.n_gpus_per_node": gpus_per_node,
        "trainer.logger": settings["logger"],
        "trainer.project_name": settings["project_name"],
        "trainer.experiment_name": settings["experiment_name"],
        "trainer.resume_mode": "auto",
    }


def composed(config_name: str, arguments: list[str]) -> Any:
    """verl's whole configuration as its trainer will see it, without importing verl or torch.

    :param config_name: a file of ``verl/trainer/config``.
    :param arguments: hydra overrides.
    :raises JobError: verl is not installed, or refuses a setting.
    """
    verl = importlib.util.find_spec("verl")
    if verl is None or not verl.submodule_search_locations:
        raise JobError(
            "verl is not installed in this environment. Install requirements-cluster.txt there, or correct "
            "'environment' in the cluster's file under include/clusters/."
        )
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    directory = Path(verl.submodule_search_locations[0]) / "trainer" / "config"
    try:
        with initialize_config_dir(str(directory), version_base=None):
            return compose(config_name, overrides=arguments)
    except (HydraException, OmegaConfBaseException) as error:
        why = f"{error} {error.__cause__ or ''}".strip()
        raise JobError(
            f"verl refuses a setting of the recipe: {why}\nA key that verl's own files do not have needs a '+' "
            f"in front. All keys: {directory}/{config_name}.yaml"
        ) from error


def count_rows(files: Any, most: int = -1) -> int:
    """Rows of one or several parquet files, read from their footers.

    :param files: a path or a list of paths.
    :param most: verl's ``data.train_max_samples``; -1 is all.
    :raises JobError: a file is missing or not parquet.
    """
    import pyarrow
    import pyarrow.parquet

    rows = 0
    for path in [files] if isinstance(files, str) else files:
        try:
            rows += pyarrow.parquet.read_metadata(path).num_rows
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise JobError(
                f"cannot read the training data {path}: {error}. Run the prepare stage again."
            ) from error
    return min(rows, most) if most > 0 else rows


def expected_steps(steps_per_epoch: int, epochs: int, total_steps: Optional[int]) -> int:
    """The step at which training is complete.

    :param total_steps: verl's ``trainer.total_training_steps``, None when the epochs decide.
    :raises JobError: verl would end before ``total_steps`` without saving its last step.
    """
    steps = steps_per_epoch * epochs
    if total_steps is None:
        return steps
    if total_steps > steps:
        raise JobError(
            f"trainer.total_training_steps={total_steps} is out of reach: trainer.total_epochs={epochs} of "
            f"{steps_per_epoch} steps end at step {steps}. Raise trainer.total_epochs."
        )
    return total_steps


def already_trained(directory: Path, layout: checkpoints.Layout, expected: int) -> bool:
    """Whether an earlier attempt finished. verl would train one step too many if it were started again."""
    step = checkpoints.tracked_step(directory)
    if step is None or step < expected:
        return False
    return layout.is_complete(checkpoints.step_directory(directory, step))


def judge(directory: Path, expected: int) -> dict[str, Any]:
    """The stage's result, from what was saved: verl may exit with 0 and have trained nothing.

    :raises JobError: the newest checkpoint is not the last step's.
    """
    step = checkpoints.tracked_step(directory)
    if step is None or step < expected:
        saved = f"its newest checkpoint is of step {step}" if step else "it saved no checkpoint"
        raise JobError(
            f"verl ended without an error, but {saved} and training is complete at step {expected}. "
            f"Look for the last step in the log above; checkpoints are in {directory}",
            retry=True,
        )
    return {"step": step, "expected_steps": expected, "checkpoint_dir": str(directory)}


def training_environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for the processes that train, beyond what they inherit.

    :param settings: ``logger`` and, if any, ``wandb_entity``.
    """
    variables = {
        "HF_HUB_OFFLINE": "1",  # everything is on disk by now, and 16 processes asking the Hub get rate limits
        "HYDRA_FULL_ERROR": "1",  # else hydra hides the traceback
    }
    variables = {name: value for name, value in variables.items() if name not in environ}
    if "wandb" in settings["logger"]:
        if settings.get("wandb_entity"):
            variables["WANDB_ENTITY"] = settings["wandb_entity"]
        if "WANDB_MODE" not in environ and (problem := _wandb_problem(environ)):
            say(
                f"Weights & Biases: {problem}. Logging offline; send it later with 'wandb sync wandb/offline-run-*'"
            )
            variables["WANDB_MODE"] = "offline"
    return variables


def _wandb_problem(environ: Mapping[str, str]) -> Optional[str]:
    """Why an online W&B run could not start, or None. verl does not survive a wandb.init that fails."""
    if not environ.get("WANDB_API_KEY") and not (Path(environ.get("HOME", "/")) / ".netrc").exists():
        return "no API key (wandb_conn_id of the cluster's file)"
    server = environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        urllib.request.urlopen(server, timeout=10).close()
    except urllib.error.HTTPError:
        return None  # it answered
    except (OSError, ValueError) as error:
        return f"{server} cannot be reached from {os.uname().nodename} ({error})"
    return None
