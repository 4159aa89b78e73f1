"""Stage ppo: the arguments, and the Ray cluster as it is; nothing here trains."""

from __future__ import annotations

import pytest

from llm_bridge.config.loader import load_recipe
from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.stages import ppo
from llm_bridge.remote.node.verl.hydra_args import overrides
from tests.unit.remote.node.support import ppo_settings

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
    "trainer.logger": ["console", "wandb", "file"],  # the file of metrics is llm-bridge's
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


def test_an_algorithm_without_a_critic_gets_no_setting_for_one() -> None:
    settings = ppo_settings(keep=3)
    assert [a for a in ppo.arguments(settings) if "critic" in a] == [
        "critic.model.path='/m'",
        "trainer.max_critic_ckpt_to_keep=3",
    ]
    del settings["critic_path"]
    assert ppo.roles(settings) == ["actor"]
    assert not [a for a in ppo.arguments(settings) if "critic" in a]
