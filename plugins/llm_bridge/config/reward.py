"""The recipe's ``ppo.reward``: built-in rewards, the user's own files, a reward model, a sandbox.

``docs/rewards.md`` shows the forms. All of them are read into one :class:`Reward`, which has the texts of the user's
files: a run keeps the reward that it was started with.
"""

from __future__ import annotations

import difflib
import json
import keyword
import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from llm_bridge.config import reward_file
from llm_bridge.config.types import AbsolutePath, Count, FrozenModel, Text, matching

# Behaviour after a trial of the reward that failed (remote/node/rewards/trial.py).
Trial = Literal["refuse", "warn", "skip"]
FORMS = (
    "'NAME', {name: NAME, OPTION: ...}, {weighted_sum: [{name: NAME, weight: NUMBER}, ...]}, "
    "{model: PATH} or {sandbox_url: URL}"
)
# Keys of which ppo.reward has one, or name and model.
FORM_KEYS = ("name", "weighted_sum", "model", "sandbox_url")
# verl's settings that each part of ppo.reward decides.
FUNCTION_KEYS = ("reward.custom_reward_function.", "custom_reward_function.")
MODEL_KEYS = (
    *("reward.reward_model.enable", "reward.reward_model.model_path"),
    *("reward_model.enable", "reward_model.model.path"),
)
SANDBOX_KEYS = ("reward.sandbox_fusion.url", "sandbox_fusion.url")


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return text


def _one_group(pattern: str) -> str:
    if (groups := re.compile(pattern).groups) > 1:
        raise ValueError(f"has {groups} groups, of which only the first counts: write the others as (?:...)")
    return pattern


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_regular_expression)]
Url = Annotated[Text, matching(r"https?://[^\s/]+.*", "a URL, such as http://sandbox.example:8080/run_code")]


class Gsm8k(FrozenModel):
    """The last number is the ground truth, as verl reads it."""

    method: Literal["strict", "flexible"] = "strict"
    format_score: float = 0.0


class Math(FrozenModel):
    """The last expression equals the ground truth (math-verify)."""


class ExactMatch(FrozenModel):
    """The answer is the ground truth, as text."""

    answer: Annotated[Pattern, AfterValidator(_one_group)] | None = None
    ignore_case: bool = False


class Regex(FrozenModel):
    """The pattern is found in the response."""

    pattern: Pattern


class Format(FrozenModel):
    """The pattern matches the whole response."""

    pattern: Pattern = r"\s*<think>.*</think>\s*<answer>.*</answer>\s*"


class LengthPenalty(FrozenModel):
    """Nothing up to ``free`` characters, then down to -1 at ``full`` characters."""

    free: Annotated[int, Field(ge=0)]
    full: Annotated[int, Field(ge=1)]

    def model_post_init(self, _: Any) -> None:
        """Refuse limits in the wrong order."""
        if self.full <= self.free:
            raise ValueError(f"full ({self.full}) must be more than free ({self.free}); both are characters")


BUILT_IN: dict[str, type[FrozenModel]] = {
    "gsm8k": Gsm8k,
    "math": Math,
    "exact_match": ExactMatch,
    "regex": Regex,
    "format": Format,
    "length_penalty": LengthPenalty,
}


class Term(FrozenModel):
    """One reward of a weighted sum."""

    name: str
    weight: float = 1.0
    options: dict[str, Any] = {}


class Reward(FrozenModel):
    """The reward of a run.

    Attributes:
        terms: Rewards to sum up; empty where verl's reward model or sandbox gives the score.
        files: Name of a user's reward -> its text.
        model: Directory of a reward model on the cluster.
        sandbox_url: Server that runs code (verl's sandbox_fusion).
        sandbox_max_concurrent: Number of requests to it at once.
        sandbox_memory_mb: Memory of one of its processes.
    """

    terms: list[Term] = []
    files: dict[str, str] = {}
    model: AbsolutePath | None = None
    sandbox_url: Url | None = None
    sandbox_max_concurrent: Count = 64
    sandbox_memory_mb: Count = 1024

    def settings(self) -> dict[str, Any]:
        """Return the reward as settings of the program ``ppo``."""
        return self.model_dump(exclude_defaults=True)

    def conflicts(self, verl: dict[str, Any]) -> list[str]:
        """Return the keys of the recipe's verl settings that contradict this reward."""
        keys = [
            *(FUNCTION_KEYS if self.terms else ()),
            *(MODEL_KEYS if self.model else ()),
            *(SANDBOX_KEYS if self.sandbox_url else ()),
        ]
        return [key for key in verl if key.lstrip("+").startswith(tuple(keys))]


def read_reward(value: Any) -> Any:
    """Return a recipe's ``ppo.reward`` as the fields of :class:`Reward`.

    Args:
        value: The YAML value, or fields that this function returned before: a run's plan is read again by each task,
            and keeps the files' texts.

    Raises:
        ValueError: Names the key below ``ppo.reward``, and the valid values.
    """
    if value is None or isinstance(value, Reward):
        return value
    if isinstance(value, dict) and value.keys() == Reward.model_fields.keys():
        return value
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, list):
        raise ValueError("several rewards are {weighted_sum: [{name: NAME, weight: NUMBER}, ...]}")
    if not isinstance(value, dict):
        raise ValueError(f"expected {FORMS}")
    forms = [key for key in FORM_KEYS if key in value]
    if forms == ["name", "model"]:
        return _function(value, value["model"])
    if len(forms) != 1:
        found = (
            f"{' and '.join(forms)} together"
            if forms
            else f"none of them in {', '.join(map(str, value)) or 'an empty mapping'}"
        )
        raise ValueError(f"expected one of {FORMS}; found {found}")
    if forms == ["name"]:
        return _function(value)
    if forms == ["weighted_sum"]:
        return _weighted_sum(value)
    allowed = {
        "model": ("model",),
        "sandbox_url": ("sandbox_url", "sandbox_max_concurrent", "sandbox_memory_mb"),
    }[forms[0]]
    if unknown := [str(key) for key in value if key not in allowed]:
        raise ValueError(
            f"{', '.join(unknown)}: no such key. Allowed beside {forms[0]}: {', '.join(allowed)}"
        )
    if value[forms[0]] is None:
        raise ValueError(f"{forms[0]} is empty")
    return {"terms": [], **value}


def _function(value: dict[str, Any], model: Any = None) -> dict[str, Any]:
    """Return one reward; with ``model``, a user's function that asks a generative reward model."""
    if "weight" in value:
        raise ValueError("weight: is for the rewards of a weighted_sum: remove it, or rename the option")
    if "model" in value and value["name"] in BUILT_IN:
        raise ValueError(
            f"{value['name']} does not use a model: remove 'model', or name a file of include/rewards that sends "
            "requests to reward_router_address"
        )
    entry = {key: item for key, item in value.items() if key != "model"}
    term, files = _term(entry, "", with_model="model" in value)
    return {"terms": [term], "files": files, **({"model": model} if "model" in value else {})}


def _weighted_sum(value: dict[str, Any]) -> dict[str, Any]:
    if unknown := [str(key) for key in value if key != "weighted_sum"]:
        raise ValueError(f"{', '.join(unknown)}: options stand beside the 'name' that they belong to")
    items = value["weighted_sum"]
    if not isinstance(items, list) or not items:
        raise ValueError("weighted_sum: expected a list, such as [{name: gsm8k, weight: 1.0}, ...]")
    terms: list[dict[str, Any]] = []
    files: dict[str, str] = {}
    for number, item in enumerate(items):
        key = f"weighted_sum.{number}."
        entry = {"name": item} if isinstance(item, str) else item
        if not isinstance(entry, dict) or "name" not in entry:
            raise ValueError(f"{key.rstrip('.')}: expected {{name: NAME, weight: NUMBER}}, found {item!r}")
        weight = entry.get("weight", 1.0)
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not math.isfinite(weight)
            or not weight
        ):
            raise ValueError(f"{key}weight: must be a number other than 0 (got {weight!r})")
        term, text = _term({name: item for name, item in entry.items() if name != "weight"}, key)
        terms.append({**term, "weight": float(weight)})
        files |= text
    return {"terms": terms, "files": files}


def _term(
    entry: dict[str, Any], key: str, *, with_model: bool = False
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return one reward with its checked options, and the text of its file if it is a user's.

    Args:
        entry: ``name`` and the options.
        key: Keys above, with a dot at the end, for messages.
        with_model: True if the function asks a reward model.
    """
    name, options = entry["name"], {str(k): v for k, v in entry.items() if k != "name"}
    own = reward_file.available()
    if not isinstance(name, str):
        raise ValueError(f"{key}name: must be the name of a reward (got {name!r})")
    if name in BUILT_IN:
        if name in own:
            raise ValueError(
                f"{key}name: {name} is a built-in reward and a file of include/rewards: rename the file"
            )
        return {"name": name, "options": _built_in_options(name, options, key)}, {}
    if name == "weighted_sum":
        raise ValueError(
            f"{key}name: write weighted_sum as a key: {{weighted_sum: [{{name: NAME, weight: NUMBER}}, ...]}}"
        )
    if name not in own:
        plain = name.rpartition("/")[2].removesuffix(".py").lower().replace("-", "_")
        similar = difflib.get_close_matches(plain, [*BUILT_IN, *own], n=1)
        hint = f" Did you mean {similar[0]}?" if similar else ""
        raise ValueError(
            f"{key}name: there is no reward {name!r}.{hint} Built-in: {', '.join(BUILT_IN)}, and weighted_sum "
            f"of several. Files in include/rewards: {', '.join(own) or '(none)'}"
        )
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}{name}: an option is not text, number, list or mapping: {error}") from None
    if wrong := [option for option in options if not option.isidentifier() or keyword.iskeyword(option)]:
        raise ValueError(f"{key}{name}: the option {wrong[0]!r} is no name of a Python parameter: rename it")
    if taken := [
        option for option in options if option in (*reward_file.PARAMETERS, *reward_file.MODEL_PARAMETERS)
    ]:
        raise ValueError(f"{key}{taken[0]}: verl passes this parameter itself: rename the option")
    return {"name": name, "options": options}, {
        name: reward_file.read(name, list(options), with_model=with_model)
    }


def _built_in_options(name: str, options: dict[str, Any], key: str) -> dict[str, Any]:
    try:
        return BUILT_IN[name].model_validate(options).model_dump(exclude_none=True)
    except ValidationError as error:
        allowed = ", ".join(BUILT_IN[name].model_fields) or "no option"
        raise ValueError(
            "; ".join(_describe(finding, name, key, allowed) for finding in error.errors())
        ) from None


def _describe(finding: Any, name: str, key: str, allowed: str) -> str:
    where = key + (".".join(map(str, finding["loc"])) or name)
    if finding["type"] == "extra_forbidden":
        return f"{where}: {name} has no such option. It takes {allowed}"
    if finding["type"] == "missing":
        return f"{where}: {name} needs this option. It takes {allowed}"
    message = finding["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (got {finding['input']!r})"
