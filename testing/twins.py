"""Tiny twins of the recipes in ``include/``: the same shape of data, algorithm, reward and LoRA, in a size for CPUs.

A twin is the recipe itself with the sizes of tiny_cpu.yaml over it, so that a mistake in the recipe is one in its twin.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llm_bridge.config.loader import load_recipe
from testing import paths
from testing.site import Site
from testing.stack import RECIPE, ProcessStack

# Recipe whose sizes every twin has; its own twin is itself.
TINY = RECIPE
DIGITS = "digits"
DIGITS_REWARD = '''"""Reward digits: a task that a model with 100,000 random weights learns within a dozen steps."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Return the share of characters that are digits."""
    return sum(character.isdigit() for character in solution_str) / max(1, len(solution_str))
'''


@dataclass(frozen=True)
class Twin:
    """What the twin of a recipe has of its own, besides the sizes.

    Attributes:
        recipe: The recipe in ``include/recipes``.
        changes: Keys of the recipe to replace; those of a section are merged into it.
        sft: verl's settings of SFT, over those of the recipe and of tiny_cpu.yaml.
        ppo: The same for RL.
        reward: ``ppo.reward`` in place of the recipe's. The answers of a tiny model are all wrong, and GRPO learns
            nothing from rewards that are all the same: DIGITS is added to the recipe's own.
        rises: The score of the trained model must be above that of the untrained one.
        rows: Rows of a file on the cluster, the twin's data.
    """

    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)
    sft: dict[str, Any] = field(default_factory=dict)
    ppo: dict[str, Any] = field(default_factory=dict)
    reward: str | dict[str, Any] = ""
    rises: bool = False
    rows: tuple[dict[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Name of the twin's recipe file."""
        return f"twin_{self.recipe}"

    def data(self, site: Site) -> Path:
        """Return the path of the twin's rows."""
        return site.workspace / "twins" / f"{self.recipe}.jsonl"

    def write_recipe(self, site: Site) -> None:
        """Write the twin's recipe into a site's ``include/``; before Airflow reads which recipes there are."""
        if self.reward:
            folder = site.include / "rewards"
            folder.mkdir(exist_ok=True)
            (folder / f"{DIGITS}.py").write_text(DIGITS_REWARD)
        file = site.include / "recipes" / f"{self.name}.yaml"
        file.write_text(yaml.safe_dump(self.content(self.data(site))))

    def write_data(self, site: Site) -> None:
        """Write the twin's rows into a site's workspace; the cluster is up."""
        self.data(site).parent.mkdir(mode=0o755, exist_ok=True)
        self.data(site).write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def content(self, data: Path) -> dict[str, Any]:
        """Return the twin's recipe.

        Args:
            data: Path of its rows.
        """
        recipe, tiny = (
            load_recipe(name).model_dump(mode="json", exclude_unset=True) for name in (self.recipe, TINY)
        )
        written = yaml.safe_load((paths.INCLUDE / "recipes" / f"{self.recipe}.yaml").read_text())
        found = {**recipe, "schedule": None, "cluster": None, "nodes": 1, "logger": ["console"]}
        for key in ("base_model", "gpus_per_node", "prepare", "merge", "upload"):
            found[key] = tiny[key]
        found["hub"] = {
            **recipe.get("hub", {}),
            "repo_id": f"demo/{self.name.replace('_', '-')}",
            "private": False,
        }
        for stage, own in (("sft", self.sft), ("ppo", self.ppo)):
            if stage in recipe:
                found[stage] = {**recipe[stage], "time_limit": "25"}
                found[stage]["verl"] = {**recipe[stage].get("verl", {}), **self._sizes(tiny, stage), **own}
        if "reward" in recipe.get("ppo", {}):  # as it is written, and not as it is read
            found["ppo"]["reward"] = written["ppo"]["reward"]
        if self.reward:
            # The trial rightly complains: a reward that does not look at the right answer.
            found["ppo"] |= {"reward": self.reward, "reward_trial": "warn"}
        del found["name"]
        for key, change in self.changes.items():
            found[key] = {**found[key], **change} if isinstance(change, dict) else change
        if self.rows:
            found["data"]["source"] = str(data)
        return found

    def _sizes(self, tiny: dict[str, Any], stage: str) -> dict[str, Any]:
        """Return the settings of tiny_cpu.yaml; without those of a critic where the recipe trains none."""
        has_critic = load_recipe(self.recipe).ppo.algorithm == "ppo"
        settings: dict[str, Any] = tiny[stage]["verl"]
        return {
            key: value
            for key, value in settings.items()
            if has_critic or not key.lstrip("+").startswith("critic.")
        }


def _chat(x: int, y: int) -> dict[str, Any]:
    question = {"role": "user", "content": f"What is {x} plus {y}?"}
    return {"messages": [question, {"role": "assistant", "content": f"{x} plus {y} is {x + y}."}]}


def _problem(x: int, y: int) -> dict[str, Any]:
    return {
        "problem": f"Compute $\\frac{{{x}}}{{{y}}}$.",
        "solution": f"It is $\\boxed{{\\frac{{{x}}}{{{y}}}}}$.",
    }


def _with_digits(name: str) -> dict[str, Any]:
    return {"weighted_sum": [{"name": name}, {"name": DIGITS, "weight": 0.1}]}


# Few tokens and many answers to each prompt: a dozen steps in a minute.
SHORT = {
    "actor_rollout_ref.rollout.n": 8,
    "data.train_batch_size": 8,
    "data.max_response_length": 16,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 32,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 32,
}
TWO_STEPS = {**SHORT, "trainer.total_training_steps": 2, "actor_rollout_ref.actor.optim.lr": 1.0e-3}
RISING_STEPS = 12
PAIRS = [(x, y) for x in range(1, 10) for y in range(2, 10)]
GSM8K = {"source": "demo/gsm8k-tiny", "config": "main"}
TWINS = (
    Twin("gsm8k_grpo_llama32_1b", {"data": GSM8K}, ppo=TWO_STEPS, reward=_with_digits("gsm8k")),
    Twin("gsm8k_lora_llama32_1b", {"data": GSM8K}, ppo={"actor_rollout_ref.model.lora.merge": True}),
    Twin(
        "chat_sft_llama32_1b",
        {"data": {"test_fraction": 0.3}},
        sft={"optim.lr": 1.0e-3, "trainer.total_epochs": 6},
        rows=tuple(_chat(x, y) for x, y in PAIRS),
    ),
    Twin(
        "math_grpo_qwen25_1_5b",
        {"data": {"test_fraction": 0.3}},
        ppo=TWO_STEPS,
        reward=_with_digits("math"),
        rows=tuple(_problem(x, y) for x, y in PAIRS),
    ),
    Twin(
        "own_reward_grpo_llama32_1b",
        {"data": GSM8K, "stages": ["prepare", "ppo", "merge", "upload"]},
        ppo={
            **SHORT,
            "actor_rollout_ref.actor.optim.lr": 3.0e-3,
            "trainer.total_epochs": RISING_STEPS,
            "trainer.total_training_steps": RISING_STEPS,
            "trainer.save_freq": RISING_STEPS,
            # Greedy answers to the test split by the untrained and by the trained model.
            "trainer.val_before_train": True,
            "trainer.test_freq": RISING_STEPS,
        },
        reward=DIGITS,
        rises=True,
    ),
)
BY_NAME = {twin.recipe: twin for twin in TWINS}

_STEP = re.compile(r"(?<![\w/-])step:(\d+) - (.+)")
_VALUE = re.compile(r"([\w/@().-]+):(?:np\.\w+\()?(-?\d[\d.]*(?:e[+-]?\d+)?)")


def scores(stack: ProcessStack, dag: str, run: str) -> tuple[str | None, float | None, float | None]:
    """Return a metric of a run, its first value and its last one, from what verl printed for each step.

    The metric is RL's score on the test split where it was measured before training (the untrained model), else its
    reward, else SFT's loss.
    """
    for task, metrics in (("ppo.wait", ("val-core/", "critic/score/mean")), ("sft.train", ("train/loss",))):
        lines = _STEP.findall(stack.log(dag, run, task))
        steps = sorted({int(step): dict(_VALUE.findall(values)) for step, values in lines}.items())
        for metric in metrics:
            found = [
                (name, float(v))
                for _, values in steps
                for name, v in values.items()
                if name.startswith(metric)
            ]
            if len(found) > 1:
                return found[0][0], found[0][1], found[-1][1]
    return None, None, None
