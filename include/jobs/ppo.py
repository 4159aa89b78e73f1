"""PPO on a running Ray cluster: ``ppo.py SETTINGS``, the entrypoint of a Ray job (``RAY_ADDRESS`` is set there).

This process is verl's driver: what it prints is the job's log, which Ray keeps.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Optional

import checkpoints
import verl_run
from hydra_args import override, overrides
from job_io import JobError, Settings, run, say

CONFIG = "ppo_trainer"
PARTS = ("actor", "critic")
# Before this moment (epoch seconds) verl's older trainer saves (trainer.use_v1=false); 0.9.1's default one does not
# look (verl/trainer/ppo/ray_trainer.py: should_save_ckpt_esi): see saves_in_time.
CAPACITY_ENDS = "MLP_CURRENT_CAPACITY_BLOCK_EXPIRATION_TIMESTAMP"


def arguments(settings: Settings) -> list[str]:
    """What ``verl.trainer.main_ppo`` is called with.

    :param settings: the stage's settings.json.
    :returns: hydra overrides. The recipe's own come last, so they win over defaults made here.
    :raises JobError: a value that verl's PPO cannot keep.
    """
    given = {
        "actor_rollout_ref.model.path": settings["actor_path"],
        "critic.model.path": settings["critic_path"],
        **verl_run.trainer_settings(settings, settings["nodes"], settings["gpus_per_node"]),
        **{f"trainer.max_{part}_ckpt_to_keep": keep for part in PARTS if (keep := settings.get("keep"))},
        **settings["verl"],
    }
    for key, value in given.items():
        # hydra_args.py escapes it, but main_ppo.py resolves its settings twice (OmegaConf.resolve)
        if "${" in str(value):
            raise JobError(
                f"{key}={value!r}: verl's PPO cannot keep '${{' in a value, write it in another way"
            )
    return overrides(given)


def check_cluster(gpus: dict[str, int], wanted_nodes: int, wanted_gpus: int) -> None:
    """Compare the Ray cluster as it is with what the stage was configured for.

    :param gpus: of each node that is alive, by the node's name.
    :param wanted_gpus: on each node.
    :raises JobError: verl would wait for ever for the GPUs that are not there.
    """
    fit = [name for name, count in gpus.items() if count >= wanted_gpus]
    if len(fit) < wanted_nodes:
        seen = ", ".join(f"{name}: {count}" for name, count in sorted(gpus.items())) or "no node"
        raise JobError(
            f"PPO needs {wanted_nodes} node(s) with {wanted_gpus} GPU(s) each (ppo.nodes, ppo.gpus_per_node), and the "
            f"Ray cluster has {len(fit)} such node(s). GPUs of each node that is alive: {seen}. A node that is missing "
            "has left: see the log of the Ray cluster's Slurm job.",
            retry=True,
        )


def live_gpus() -> dict[str, int]:
    """GPUs of each live node of the Ray cluster that this job runs on, from Ray itself.

    Asked through Ray's state API, because a ``ray.init`` here would stand in the way of verl's own.

    :raises JobError: Ray cannot be reached.
    """
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        nodes = list_nodes(filters=[("state", "=", "ALIVE")], limit=10_000)
    except (ConnectionError, RuntimeError, RayStateApiException) as error:
        raise JobError(f"no Ray cluster to train on: {error}", retry=True) from error
    # Nodes of a test cluster share a host name and an address; the id tells them apart.
    return {
        f"{node.node_name} ({node.node_id[:6]})": int(node.resources_total.get("GPU", 0)) for node in nodes
    }


def count_prompts(config: Any) -> int:
    """Rows that verl will train on, after its filter for prompts that are too long (off by default)."""
    rows = verl_run.count_rows(config.data.train_files, config.data.train_max_samples)
    if not config.data.filter_overlong_prompts:
        return rows
    from verl.trainer.ppo.utils import create_rl_dataset
    from verl.utils import hf_tokenizer

    tokenizer = hf_tokenizer(config.actor_rollout_ref.model.path)
    most = config.data.train_max_samples
    return len(create_rl_dataset(config.data.train_files, config.data, tokenizer, None, max_samples=most))


def steps_per_epoch(rows: int, batch: int) -> int:
    """verl drops what does not fill a batch.

    :raises JobError: there is not one full batch.
    """
    if rows < batch:
        raise JobError(f"{rows} prompts do not fill one batch: data.train_batch_size={batch}")
    return rows // batch


def saves_in_time(own: Optional[str], variables: dict[str, str]) -> list[str]:
    """Overrides that make verl's default trainer save before the Ray cluster's allocation ends.

    :param own: the recipe's ``trainer.checkpoint_callback_class``, which is called all the same.
    :param variables: for the processes that train; they are shown where the class is.
    """
    folder = str(Path(__file__).with_name("in_verl"))
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    ours = override("trainer.checkpoint_callback_class", "llm_bridge_ppo.SavesInTime")
    return [ours, *([override("+trainer.llm_bridge_callback_class", own)] if own else [])]


def train(settings: Settings) -> dict[str, Any]:
    """Train to the last step; see the module's text.

    :returns: the stage's result.
    :raises JobError: it could not start, or ended without the last checkpoint.
    """
    directory = Path(settings["checkpoint_dir"])
    nodes, gpus = settings["nodes"], settings["gpus_per_node"]
    verl_arguments = arguments(settings)
    config = verl_run.composed(CONFIG, verl_arguments)
    if config.trainer.save_freq <= 0:
        raise JobError(
            f"ppo.verl: trainer.save_freq={config.trainer.save_freq} saves nothing, not even the last step. Set it to "
            "a number of steps, such as 10."
        )
    epoch = steps_per_epoch(count_prompts(config), config.data.train_batch_size)
    expected = verl_run.expected_steps(
        epoch, config.trainer.total_epochs, config.trainer.total_training_steps
    )
    layout = checkpoints.Layout.ppo(nodes * gpus, config.actor_rollout_ref.actor.checkpoint.save_contents)
    if verl_run.already_trained(directory, layout, expected):
        say(
            f"an earlier attempt trained all {expected} steps: nothing to do. To train again, start a new run"
        )
        return verl_run.judge(directory, expected)

    check_cluster(live_gpus(), nodes, gpus)
    directory.mkdir(parents=True, exist_ok=True)
    if config.trainer.resume_mode == "auto":
        checkpoints.rewind(directory, layout)
        kept = [config.trainer[f"max_{part}_ckpt_to_keep"] for part in PARTS]
        checkpoints.prune(directory, layout, max(kept) if all(kept) else None)
    say(f"PPO: {epoch} steps an epoch, {expected} steps on {nodes} node(s) x {gpus} GPU(s)")

    variables = verl_run.training_environment(settings, os.environ)
    if ends := os.environ.get("SLURM_JOB_END_TIME"):  # from Slurm 23.02 on
        variables.setdefault(CAPACITY_ENDS, os.environ.get(CAPACITY_ENDS, ends))
    if config.trainer.use_v1 and os.environ.get("LLM_BRIDGE_ENDS_SOON"):
        verl_arguments += saves_in_time(config.trainer.checkpoint_callback_class, variables)
    os.environ.update(variables)  # this process; its workers on all nodes get them from Ray:
    for name, value in variables.items():
        verl_arguments.append(override(f"+ray_kwargs.ray_init.runtime_env.env_vars.{name}", value))
    verl_arguments.append(override("hydra.run.dir", str(Path(sys.argv[1]).with_name("hydra"))))
    _run_verl(verl_arguments)
    return verl_run.judge(directory, expected)


def _run_verl(verl_arguments: list[str]) -> None:
    from verl.trainer import main_ppo

    before, sys.argv = sys.argv, ["verl.trainer.main_ppo", *verl_arguments]  # hydra reads sys.argv
    try:
        main_ppo.main()
    finally:
        sys.argv = before


if __name__ == "__main__":
    run(train)
