"""Inputs that cannot work, each of which must be refused with one clear error before a GPU is requested."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testing.site import Site


@dataclass(frozen=True)
class BadInput:
    """One bad input.

    Attributes:
        name: Its name in the report.
        how: One line for people.
        recipe: The recipe whose twin is spoiled.
        spoil: Changes the twin's content and files.
        says: Parts of the error.
        form: Fields of the trigger form.
        rows: Content of a data file in place of the twin's.
    """

    name: str
    how: str
    recipe: str
    spoil: Callable[[dict[str, Any], Site], None]
    says: tuple[str, ...]
    form: dict[str, Any] = field(default_factory=dict)
    rows: bytes | None = None

    def data(self, site: Site) -> Path:
        """Return the path of the data file."""
        return site.workspace / "twins" / "bad.jsonl"


CHAT, MATH, OWN, GRPO = (
    *("chat_sft_llama32_1b", "math_grpo_qwen25_1_5b"),
    *("own_reward_grpo_llama32_1b", "gsm8k_grpo_llama32_1b"),
)


def _nothing(recipe: dict[str, Any], site: Site) -> None:
    """Leave the recipe as it is."""


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any], Site], None]:
    """Return a change of one key of the recipe."""

    def spoil(recipe: dict[str, Any], site: Site) -> None:
        inner = recipe
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = to

    return spoil


def _reward(text: str) -> Callable[[dict[str, Any], Site], None]:
    """Return a change to a reward of one's own with this text."""
    name = f"bad_{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def spoil(recipe: dict[str, Any], site: Site) -> None:
        (site.include / "rewards" / f"{name}.py").write_text(text)
        recipe["ppo"] |= {"reward": name, "reward_trial": "refuse"}

    return spoil


NO_VERL_KEY = "ppo.actor_rollout_ref.actor.optim.lrr"
GOOD_ROW = b'{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}'
HEAD = "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n"
BAD_INPUTS = (
    BadInput(
        "unknown_column",
        "a column that the file has not",
        MATH,
        _set("data", "columns", "truth", to="answr"),
        ("answr", "problem, solution"),
    ),
    BadInput(
        "unknown_field",
        "a template with an unknown field",
        MATH,
        _set("data", "template", to="{problme}"),
        ("problme", "problem, solution"),
    ),
    BadInput("empty_split", "a file without rows", CHAT, _nothing, ("bad.jsonl",), rows=b""),
    BadInput(
        "not_utf8",
        "a row that is not UTF-8",
        CHAT,
        _nothing,
        ("bad.jsonl", "line 2", "UTF-8"),
        rows=b'%s\n{"messages": "\xe9"}\n' % GOOD_ROW,
    ),
    BadInput(
        "image_column",
        "an image column",
        MATH,
        _nothing,
        ("image",),
        rows=b'{"problem": "1", "solution": "1", "image": "x"}\n',
    ),
    BadInput(
        "reward_syntax",
        "a reward file with a syntax error",
        OWN,
        _reward("def compute_score(:\n"),
        ("line 1", "invalid syntax"),
    ),
    BadInput(
        "reward_import",
        "a reward that imports what the cluster has not",
        OWN,
        _reward("import nosuchmodule\n\n\n" + HEAD + "    return 1.0\n"),
        ("nosuchmodule",),
    ),
    BadInput(
        "reward_raises",
        "a reward that raises",
        OWN,
        _reward(HEAD + "    return 1 / 0\n"),
        ("division by zero",),
    ),
    BadInput(
        "reward_nan", "a reward that returns NaN", OWN, _reward(HEAD + "    return float('nan')\n"), ("nan",)
    ),
    BadInput(
        "reward_constant",
        "a reward that is the same for right and wrong answers",
        OWN,
        _reward(HEAD + "    return 1.0\n"),
        ("reference",),
    ),
    BadInput(
        "algorithm", "a mistyped algorithm", GRPO, _set("ppo", "algorithm", to="grop"), ("grop", "grpo")
    ),
    BadInput(
        "override",
        "an override of a key that verl has not",
        GRPO,
        _nothing,
        ("actor_rollout_ref.actor.optim.lrr",),
        {"overrides": f"{NO_VERL_KEY}=1"},
    ),
)
