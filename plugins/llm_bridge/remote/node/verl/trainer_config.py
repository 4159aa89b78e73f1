"""Configure verl, compute the steps it has to train, and verify the result; shared by SFT and PPO."""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_bridge.remote.node.common import programs
from llm_bridge.remote.node.common.job_io import JobError, Settings
from llm_bridge.remote.node.verl import checkpoints, tracking

# Imported at the end of each "import verl", also in Ray's workers and their subprocesses (verl/__init__.py).
IMPORTED_BY_VERL = (
    "llm_bridge.remote.node.verl.hooks.log_probs",
    "llm_bridge.remote.node.verl.hooks.tracking",
)
MODULES_VARIABLE = "VERL_USE_EXTERNAL_MODULES"  # names with commas between


def trainer_settings(settings: Settings, nodes: int, gpus_per_node: int) -> dict[str, Any]:
    """Return verl's ``trainer.*`` and ``data.*`` settings for both stages; the recipe's own override them."""
    return {
        "data.train_files": settings["train_files"],
        "data.val_files": settings["val_files"],
        "trainer.default_local_dir": settings["checkpoint_dir"],
        "trainer.device": settings["device"],
        "trainer.nnodes": nodes,
        "trainer.n_gpus_per_node": gpus_per_node,
        "trainer.logger": tracking.loggers(settings),
        "trainer.project_name": settings["project_name"],
        "trainer.experiment_name": settings["experiment_name"],
        "trainer.resume_mode": "auto",
    }


def load_config(config_name: str, arguments: list[str]) -> Any:
    """Return verl's complete configuration as its trainer composes it, without importing verl or torch.

    Args:
        config_name: A file of ``verl/trainer/config``, without its suffix.
        arguments: Hydra overrides.

    Raises:
        JobError: verl is not installed, or refuses a setting; the message names the keys that verl does not have, each
            with the most similar ones.
    """
    verl = importlib.util.find_spec("verl")
    if verl is None or not verl.submodule_search_locations:
        raise JobError(
            "verl is not installed in this environment. Install requirements-cluster.txt there, or correct "
            "'environment' in the cluster file under include/clusters/."
        )
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    directory = Path(verl.submodule_search_locations[0]) / "trainer" / "config"
    try:
        with initialize_config_dir(str(directory), version_base=None):
            try:
                composed = compose(config_name, overrides=arguments)
                wrong = list(wrong_kinds(_plain(composed), _plain(compose(config_name))))
            except (HydraException, OmegaConfBaseException):
                if unknown := unknown_keys(arguments, _keys(compose(config_name))):
                    raise JobError(
                        f"verl has no setting {'; no setting '.join(unknown)}. Correct it in the recipe. A key that "
                        "verl reads although its own files do not have it needs a '+' in front. All keys: "
                        f"{directory}/{config_name}.yaml",
                        kind="bad_config",
                    ) from None
                raise
    except (HydraException, OmegaConfBaseException) as error:
        cause = f"{error} {error.__cause__ or ''}".strip()
        raise JobError(f"verl refuses a setting of the recipe: {cause}", kind="bad_config") from error
    if wrong:
        raise JobError("; ".join(wrong), kind="bad_config")
    return composed


def _plain(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=False)
    return plain


def wrong_kinds(config: Mapping[str, Any], own: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the settings of another kind than verl's own value: hydra accepts any, and verl fails on the GPUs.

    Args:
        config: A configuration.
        own: The same with verl's own values.
        above: Keys above, with a dot at the end.
    """
    for name, default in own.items():
        value, key = config.get(name), f"{above}{name}"
        if isinstance(default, Mapping):
            if isinstance(value, Mapping):
                yield from wrong_kinds(value, default, f"{key}.")
            elif default and "${" not in str(value):
                yield (
                    f"{key}={value!r} would replace a section of verl: set keys below it, such as {key}.{min(default)}"
                )
        # A reference is resolved later; after_each_epoch is the only text that verl's trainers take for a number.
        elif (
            isinstance(default, (bool, int, float))
            and isinstance(value, str)
            and "${" not in value
            and value != "after_each_epoch"
        ):
            kind = "true or false" if isinstance(default, bool) else "a number"
            yield f"{key}={value!r} must be {kind}, as verl's own value {json.dumps(default)}"


def _keys(config: Any) -> list[str]:
    """Return the dotted keys of a configuration, those of sections included."""
    found: list[str] = []

    def collect(prefix: str, values: dict[Any, Any]) -> None:
        for name, value in values.items():
            found.append(f"{prefix}{name}")
            if isinstance(value, dict):
                collect(f"{prefix}{name}.", value)

    collect("", _plain(config))
    return found


def unknown_keys(arguments: list[str], known: list[str]) -> list[str]:
    """Return each key of some hydra overrides that verl does not have, with the most similar ones that it has.

    Args:
        arguments: Hydra overrides; one with a leading ``+`` adds its key.
        known: verl's keys.
    """
    unknown = []
    for key in (argument.partition("=")[0] for argument in arguments):
        if key.startswith(("+", "hydra.")) or key in known:
            continue
        name = key.rpartition(".")[2]
        similar = difflib.get_close_matches(key, known, n=3)
        # The right name in a wrong section.
        similar += [other for other in known if other.rpartition(".")[2] == name and other not in similar][:3]
        hint = f" (similar: {', '.join(similar)})" if similar else ""
        unknown.append(f"{key}{hint}")
    return unknown


def lookup(config: Any) -> Callable[[str], Any]:
    """Return a function that returns the value of a dotted key of verl's configuration, None where there is none."""
    from omegaconf import OmegaConf

    return lambda key: OmegaConf.select(config, key)


def check_numbers(config: Any, *keys: str) -> None:
    """Refuse a text where verl needs a whole number; hydra accepts any type.

    Args:
        config: verl's configuration.
        keys: Dotted keys.

    Raises:
        JobError: A value is not a whole number.
    """
    for key in keys:
        value = config
        for name in key.split("."):
            value = value[name]
        if type(value) is not int:
            raise JobError(f"{key}={value!r} must be a whole number", kind="bad_config")
        if value < 1 and key.endswith(("batch_size", "epochs")):
            raise JobError(f"{key}={value!r} must be 1 or more", kind="bad_config")


def count_rows(files: Any, max_rows: int = -1) -> int:
    """Return the number of rows of parquet files, from their footers.

    Args:
        files: A path or a list of paths.
        max_rows: verl's ``data.train_max_samples``; -1 means no limit.

    Raises:
        JobError: A file is missing or not parquet.
    """
    import pyarrow
    import pyarrow.parquet

    rows = 0
    for path in [files] if isinstance(files, str) else files:
        try:
            rows += int(pyarrow.parquet.read_metadata(path).num_rows)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise JobError(
                f"cannot read the training data {path}: {error}. Run the prepare stage again."
            ) from error
    return min(rows, max_rows) if max_rows > 0 else rows


def expected_steps(steps_per_epoch: int, epochs: int, total_steps: int | None) -> int:
    """Return the step at which training is complete.

    Args:
        steps_per_epoch: Optimizer steps in one epoch.
        epochs: verl's ``trainer.total_epochs``.
        total_steps: verl's ``trainer.total_training_steps``; None if the epochs determine the end.

    Raises:
        JobError: verl would end before ``total_steps`` without saving its last step.
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
    """Return True if an earlier attempt completed training; verl started again would train one step too many."""
    step = checkpoints.tracked_step(directory)
    if step is None or step < expected:
        return False
    return layout.is_complete(checkpoints.step_directory(directory, step))


def verify_result(directory: Path, expected: int) -> dict[str, Any]:
    """Return the stage's result, from the saved checkpoints: verl may exit with 0 and have trained nothing.

    Args:
        directory: verl's ``trainer.default_local_dir``.
        expected: The step at which training is complete.

    Raises:
        JobError: The newest checkpoint is not that of the last step.
    """
    step = checkpoints.tracked_step(directory)
    if step is None or step < expected:
        saved = f"its newest checkpoint is of step {step}" if step else "it saved no checkpoint"
        raise JobError(
            f"verl ended without an error, but {saved} and training is complete at step {expected}. "
            f"Find the last step in the log above; checkpoints are in {directory}",
            retry=True,
        )
    return {"step": step, "expected_steps": expected, "checkpoint_dir": str(directory)}


def training_environment(settings: Settings, environ: Mapping[str, str], attempt: Path) -> dict[str, str]:
    """Return environment variables for the processes that train, beyond those that they inherit.

    Args:
        settings: The stage's settings.json.
        environ: The variables that they inherit.
        attempt: The attempt's directory.
    """
    variables = {
        "HF_HUB_OFFLINE": "1",  # all files are on disk by now; requests of 16 processes exceed the Hub's rate limit
        "HYDRA_FULL_ERROR": "1",  # without it hydra hides the traceback
    }
    variables = {name: value for name, value in variables.items() if name not in environ}
    variables["PYTHONPATH"] = programs.python_path(environ)  # with it, these processes can import our hooks
    modules = (environ.get(MODULES_VARIABLE), *IMPORTED_BY_VERL)
    variables[MODULES_VARIABLE] = ",".join(filter(None, modules))
    return variables | tracking.environment(settings, environ, attempt)
