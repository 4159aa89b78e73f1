"""ppo.py: the arguments, the Ray cluster as it is, and what verl calls after it has saved; nothing here trains."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import ppo
import pytest
from hydra_args import overrides
from job_io import JobError

from llm_bridge.config.load import load_recipe
from tests.jobs.support import JOBS, ppo_settings

# What the script that llm-bridge replaces passed to verl, but for paths and names of runs
# (github.com/matsuolab/llm_bridge_prod, train/scripts/mutinode_ppo/launch_training.py).
SEED = {
    "data.train_batch_size": 256,
    "data.max_prompt_length": 512,
    "data.max_response_length": 256,
    "data.dataloader_num_workers": 0,
    "actor_rollout_ref.actor.optim.lr": 1e-6,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 64,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 4,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 8,
    "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
    "actor_rollout_ref.rollout.gpu_memory_utilization": 0.9,
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 4,
    "critic.optim.lr": 1e-5,
    "critic.ppo_micro_batch_size_per_gpu": 4,
    "algorithm.kl_ctrl.kl_coef": 0.001,
    "trainer.logger": ["console", "wandb"],
    "trainer.val_before_train": False,
    "trainer.n_gpus_per_node": 8,
    "trainer.nnodes": 2,
    "trainer.save_freq": 10,
    "trainer.test_freq": 10,
    "trainer.total_epochs": 15,
}


def test_the_gsm8k_recipe_passes_every_setting_of_the_script_that_it_replaces() -> None:
    recipe = load_recipe("gsm8k_llama32_1b")
    settings = ppo_settings(
        nodes=recipe.nodes, gpus_per_node=recipe.gpus_per_node, logger=recipe.logger, verl=recipe.ppo.verl
    )
    assert set(overrides(SEED)) <= set(ppo.arguments(settings))


def test_actor_and_critic_get_their_own_model() -> None:
    arguments = ppo.arguments(ppo_settings(actor_path="/a", critic_path="/b"))
    assert arguments[:2] == ["actor_rollout_ref.model.path='/a'", "critic.model.path='/b'"]


def test_a_value_that_verl_would_resolve_twice_is_refused_with_its_key() -> None:
    with pytest.raises(JobError, match=r"trainer\.experiment_name='\$\{x\}'"):
        ppo.arguments(ppo_settings(experiment_name="${x}"))


def test_a_cluster_with_all_its_gpus_is_fit() -> None:
    ppo.check_cluster({"n1": 8, "n2": 8, "head": 0}, 2, 8)


@pytest.mark.parametrize(
    ("gpus", "seen"),
    [({"n1": 8}, "n1: 8"), ({"n1": 8, "n2": 7}, "n1: 8, n2: 7"), ({}, "no node")],
)
def test_a_cluster_that_lacks_gpus_is_refused_with_what_each_node_has(
    gpus: dict[str, int], seen: str
) -> None:
    with pytest.raises(JobError, match=rf"needs 2 node\(s\) with 8 GPU\(s\) each.*alive: {seen}\.") as caught:
        ppo.check_cluster(gpus, 2, 8)
    assert caught.value.retry, "a node that left may be back in the next allocation"


def test_an_epoch_has_the_full_batches_of_the_data() -> None:
    assert ppo.steps_per_epoch(7473, 256) == 29
    with pytest.raises(JobError, match=r"10 prompts do not fill one batch"):
        ppo.steps_per_epoch(10, 16)


IN_VERL = """
import json, sys
import ppo, verl_run
from omegaconf import OmegaConf
variables = {}
config = verl_run.composed(ppo.CONFIG, ["trainer.save_freq=10", *ppo.saves_in_time("own.Notes", variables)])
sys.path[:0] = variables["PYTHONPATH"].split(":")  # as it is in the processes that Ray starts
from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback
callback = build_checkpoint_callback(config)
saved = []
for step in range(1, 13):
    if config.trainer.save_freq > 0 and step % config.trainer.save_freq == 0:
        callback.on_save(trainer=None, global_step=step, checkpoint_dir="/c", async_save=False)
        saved.append(step)
import own
kept = OmegaConf.to_container(config, resolve=True)["trainer"]["save_freq"]
print(json.dumps([saved, own.noted, json.dumps(kept)]))
"""


def test_verl_saves_when_the_allocation_ends_and_still_calls_the_recipes_own_class(
    cluster_python: str, tmp_path: Path
) -> None:
    """verl's own way from the overrides to the class; tests/e2e trains with it. How long a save takes is not known
    before the first, so that is made at once; step 10 is the recipe's."""
    own = "noted = []\nclass Notes:\n    def __init__(self, config): pass\n"
    own += "    def on_save(self, trainer, global_step, **rest): noted.append(global_step)\n"
    (tmp_path / "own.py").write_text(own)
    (tmp_path / "ends_soon").write_text(f"{time.time() + 300:.0f}")
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{JOBS}", "PYTHONWARNINGS": "ignore"}
    environ["LLM_BRIDGE_ENDS_SOON"] = str(tmp_path / "ends_soon")
    done = subprocess.run([cluster_python, "-c", IN_VERL], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[1, 10], [1, 10], "10"]
