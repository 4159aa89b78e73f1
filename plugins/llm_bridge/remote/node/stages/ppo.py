"""Train PPO on a running Ray cluster: ``python node.pyz ppo SETTINGS``, the entrypoint of a Ray job.

Ray sets ``RAY_ADDRESS``. This process is verl's driver: its output is the job's log, which Ray keeps.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import JobError, Settings, attempt, log_line, run
from llm_bridge.remote.node.rewards import function
from llm_bridge.remote.node.verl import (
    checkpoints,
    flash_attn,
    ppo_rules,
    rollout_memory,
    tracking,
    trainer_config,
    validate_ppo,
)
from llm_bridge.remote.node.verl.hydra_args import override, overrides

CONFIG = "ppo_trainer"
# verl's older trainer (trainer.use_v1=false) saves before this moment (epoch seconds); 0.9.1's default one ignores it
# (verl/trainer/ppo/ray_trainer.py: should_save_ckpt_esi), see save_before_timeout.
CAPACITY_ENDS = "MLP_CURRENT_CAPACITY_BLOCK_EXPIRATION_TIMESTAMP"


def roles(settings: Settings) -> list[str]:
    """Return the models that are trained; an algorithm without a critic has no ``critic_path``."""
    return ["actor", "critic"] if settings.get("critic_path") else ["actor"]


def arguments(settings: Settings) -> list[str]:
    """Return the arguments of ``verl.trainer.main_ppo``.

    Args:
        settings: The stage's settings.json.

    Returns:
        Hydra overrides. The recipe's own come last, so they override the defaults made here.

    Raises:
        JobError: verl's PPO would change a value.
    """
    given = {
        "actor_rollout_ref.model.path": settings["actor_path"],
        **({"critic.model.path": path} if (path := settings.get("critic_path")) else {}),
        **trainer_config.trainer_settings(settings, settings["nodes"], settings["gpus_per_node"]),
        **{
            f"trainer.max_{role}_ckpt_to_keep": keep
            for role in roles(settings)
            if (keep := settings.get("keep"))
        },
        **_reward_settings(settings),
        **settings["verl"],
    }
    for key, value in given.items():
        # hydra_args.py escapes it, but main_ppo.py resolves its settings twice (OmegaConf.resolve).
        if "${" in str(value):
            raise JobError(
                f"{key}={value!r}: verl's PPO resolves '${{' in a value twice, which would change it. Write the value "
                "without '${'."
            )
    return overrides(given)


def _reward_settings(settings: Settings) -> dict[str, Any]:
    """Return verl's settings of the recipe's reward; without one, verl chooses a function by ``data_source``."""
    if "reward" not in settings:
        return {}
    return function.verl_settings(settings["reward"], attempt(), settings["verl"])


def check_cluster(gpus: dict[str, int], min_nodes: int, min_gpus: int) -> None:
    """Compare the nodes of the Ray cluster with those that the stage is configured for.

    Args:
        gpus: Node name -> number of GPUs, of each node that is alive.
        min_nodes: Number of nodes that the stage needs.
        min_gpus: Number of GPUs that it needs on each of them.

    Raises:
        JobError: There are fewer; verl would wait for the missing GPUs for ever.
    """
    usable = [name for name, count in gpus.items() if count >= min_gpus]
    if len(usable) < min_nodes:
        seen = ", ".join(f"{name}: {count}" for name, count in sorted(gpus.items())) or "no node"
        raise JobError(
            f"PPO needs {min_nodes} node(s) with {min_gpus} GPU(s) each (ppo.nodes, ppo.gpus_per_node), and the "
            f"Ray cluster has {len(usable)} such node(s). GPUs of each node that is alive: {seen}. A node that is "
            "missing has left the cluster: see the log of the Ray cluster's Slurm job.",
            retry=True,
        )


def live_gpus() -> dict[str, int]:
    """Return the number of GPUs of each live node of the Ray cluster that this job runs on.

    The numbers come from Ray's state API, because a ``ray.init`` in this process would conflict with verl's own.

    Raises:
        JobError: Ray is unreachable.
    """
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        nodes = list_nodes(filters=[("state", "=", "ALIVE")], limit=10_000)
    except (ConnectionError, RuntimeError, RayStateApiException) as error:
        raise JobError(f"no Ray cluster to train on: {error}", retry=True) from error
    # Nodes of a test cluster share a host name and an address; the id distinguishes them.
    return {
        f"{node.node_name} ({node.node_id[:6]})": int(node.resources_total.get("GPU", 0)) for node in nodes
    }


def count_prompts(config: Any) -> int:
    """Return the number of rows that verl trains on, after its filter for overlong prompts (off by default)."""
    rows = trainer_config.count_rows(config.data.train_files, config.data.train_max_samples)
    if not config.data.filter_overlong_prompts:
        return rows
    from verl.trainer.ppo.utils import create_rl_dataset
    from verl.utils import hf_tokenizer

    tokenizer = hf_tokenizer(config.actor_rollout_ref.model.path)
    max_rows = config.data.train_max_samples
    return len(create_rl_dataset(config.data.train_files, config.data, tokenizer, None, max_samples=max_rows))


def steps_per_epoch(rows: int, batch: int) -> int:
    """Return the number of steps in one epoch; verl drops rows that do not fill a batch.

    Raises:
        JobError: There is not one full batch.
    """
    if rows < batch:
        raise JobError(f"{rows} prompts do not fill one batch: data.train_batch_size={batch}")
    return rows // batch


def hook_overrides(recipe_callback: str | None) -> list[str]:
    """Return the overrides that make verl's default trainer load hooks/ppo.py.

    Args:
        recipe_callback: The recipe's ``trainer.checkpoint_callback_class``, which is called as well.
    """
    callback = override("trainer.checkpoint_callback_class", "llm_bridge.remote.node.verl.hooks.ppo.Callback")
    if not recipe_callback:
        return [callback]
    return [callback, override("+trainer.llm_bridge_callback_class", recipe_callback)]


def compose(settings: Settings) -> tuple[list[str], Any]:
    """Return the arguments of verl's trainer, and its configuration; needs neither data nor GPU.

    Args:
        settings: The stage's settings.json.

    Raises:
        JobError: verl refuses a setting, or one of them would lose the training, or has no effect.
    """
    verl_arguments = arguments(settings)
    config = trainer_config.load_config(CONFIG, verl_arguments)
    trainer_config.check_numbers(
        config, "data.train_batch_size", "data.train_max_samples", "trainer.total_epochs", "trainer.save_freq"
    )
    if config.trainer.save_freq <= 0:
        raise JobError(
            f"trainer.save_freq={config.trainer.save_freq} saves nothing, not even the last step. Set it to "
            "a number of steps, such as 10."
        )
    gpus = settings["nodes"] * settings["gpus_per_node"]
    if problems := list(ppo_rules.problems(trainer_config.lookup(config), gpus)):
        raise JobError("; ".join(problems), kind="bad_config")
    return verl_arguments, config


def check_steps(settings: Settings) -> None:
    """Compose the configuration, let verl check it, and count the steps, from the unfiltered data, without GPUs.

    Args:
        settings: The stage's settings.json.

    Raises:
        JobError: As for :func:`compose`, data and settings do not fit together, or the environment lacks flash-attn and
            the settings need it, or a package of a logger; or W&B does not know
            the key.
    """
    _, config = compose(settings)
    lookup = trainer_config.lookup(config)
    flash_attn.check(lookup, flash_attn.PPO, critic=ppo_rules.needs_critic(lookup))
    tracking.check(settings, os.environ)
    rows = trainer_config.count_rows(config.data.train_files, config.data.train_max_samples)
    epoch = steps_per_epoch(rows, config.data.train_batch_size)
    if not config.data.filter_overlong_prompts:
        trainer_config.expected_steps(epoch, config.trainer.total_epochs, config.trainer.total_training_steps)
    validate_ppo.validate(config)


def train(settings: Settings) -> dict[str, Any]:
    """Train to the last step, from the newest complete checkpoint.

    Returns:
        The stage's result.

    Raises:
        JobError: Training could not start, or ended without the last checkpoint.
    """
    directory = Path(settings["checkpoint_dir"])
    nodes, gpus = settings["nodes"], settings["gpus_per_node"]
    verl_arguments, config = compose(settings)
    epoch = steps_per_epoch(count_prompts(config), config.data.train_batch_size)
    expected = trainer_config.expected_steps(
        epoch, config.trainer.total_epochs, config.trainer.total_training_steps
    )
    layout = checkpoints.Layout.ppo(nodes * gpus, config.actor_rollout_ref.actor.checkpoint.save_contents)
    if trainer_config.already_trained(directory, layout, expected):
        log_line(
            f"an earlier attempt trained all {expected} steps: nothing to do. To train again, start a new run"
        )
        return trainer_config.verify_result(directory, expected)

    models = {role: settings.get(f"{role}_path") for role in ("actor", "critic")}
    if problem := rollout_memory.check(trainer_config.lookup(config), nodes * gpus, models):
        raise JobError(problem, kind="bad_config")
    check_cluster(live_gpus(), nodes, gpus)
    directory.mkdir(parents=True, exist_ok=True)
    if config.trainer.resume_mode == "auto":
        checkpoints.rewind(directory, layout)
        keep = [config.trainer[f"max_{role}_ckpt_to_keep"] for role in roles(settings)]
        checkpoints.prune(directory, layout, max(keep) if all(keep) else None)
    log_line(f"PPO: {epoch} steps an epoch, {expected} steps on {nodes} node(s) x {gpus} GPU(s)")

    variables = trainer_config.training_environment(settings, os.environ, attempt())
    if job_end := os.environ.get("SLURM_JOB_END_TIME"):  # from Slurm 23.02 on
        variables.setdefault(CAPACITY_ENDS, os.environ.get(CAPACITY_ENDS, job_end))
    elif not config.trainer.use_v1:
        log_line(
            "with trainer.use_v1=false, PPO does not save before the job ends: Slurm before 23.02 does not name that "
            "time. A time limit costs the steps since the last checkpoint (trainer.save_freq)"
        )
    if config.trainer.use_v1:
        verl_arguments += hook_overrides(config.trainer.checkpoint_callback_class)
    if reward := settings.get("reward"):
        function.write_files(reward, attempt())
    # For this process; Ray passes the variables to the workers on all nodes, from runtime_env.
    os.environ.update(variables)
    for name, value in variables.items():
        verl_arguments.append(override(f"+ray_kwargs.ray_init.runtime_env.env_vars.{name}", value))
    verl_arguments.append(override("hydra.run.dir", str(Path(sys.argv[1]).with_name(attempt_dir.HYDRA))))
    _run_verl(verl_arguments)
    return trainer_config.verify_result(directory, expected) | tracking.noted_wandb_run(attempt())


def _run_verl(verl_arguments: list[str]) -> None:
    from verl.trainer import main_ppo

    before, sys.argv = sys.argv, ["verl.trainer.main_ppo", *verl_arguments]  # hydra reads sys.argv
    try:
        main_ppo.main()
    finally:
        sys.argv = before


def main() -> None:
    """Run the program (``python node.pyz ppo SETTINGS``)."""
    run(train)
