"""Lines of the form's field *Overrides*: ``sft.KEY=VALUE`` and ``ppo.KEY=VALUE``, with verl's own keys.

``+`` in front of the line or of the key adds a key that verl's own files do not have, as for Hydra:
``+ppo.KEY=VALUE`` or ``ppo.+KEY=VALUE``. Values are YAML. Empty lines and lines that start with ``#`` are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import ValidationError

from llm_bridge.config.data import Data
from llm_bridge.config.recipe import Recipe, TrainStage
from llm_bridge.config.reward import FORM_KEYS
from llm_bridge.config.verl_settings import Training, flatten, translate
from llm_bridge.exceptions import ConfigError

STAGES: tuple[Training, ...] = get_args(Training)
_LINE = re.compile(r"(?P<before>\+{0,2})(?P<stage>\w+)\.(?P<after>\+{0,2})(?P<key>[^=]*?)\s*=(?P<value>.*)")
# A value without quotes, and a setting after it.
_SEVERAL = re.compile(rf"\s*[^'\"\s].*[\s,;]\+*({'|'.join(STAGES)})\.[\w.+]+\s*=")
# Keys of a recipe in sections that verl has, too.
_RECIPE_KEYS = {"data": set(Data.model_fields), "reward": {*FORM_KEYS}}
EXAMPLE = "ppo.actor_rollout_ref.actor.optim.lr=5.0e-7"


class Override(NamedTuple):
    """One line: the setting ``key`` of a stage, ``+`` included."""

    line: int
    stage: Training
    key: str
    value: Any


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a field that are neither blank nor a comment."""
    for number, raw in enumerate(text.splitlines(), start=1):
        if (line := raw.strip()) and not line.startswith("#"):
            yield number, line


def parse(text: str) -> list[Override]:
    """Return the overrides of the form.

    Args:
        text: The field of the form.

    Raises:
        ConfigError: Names every line that cannot be used, with its number.
    """
    found: list[Override] = []
    errors: list[str] = []
    for number, line in lines(text):
        try:
            found += _parse_line(number, line)
        except ValueError as error:
            errors.append(f"line {number} ({line}): {error}")
    first: dict[tuple[str, str], int] = {}
    for override in found:
        name = (override.stage, override.key.lstrip("+"))
        if (before := first.setdefault(name, override.line)) != override.line:
            errors.append(
                f"line {override.line}: {'.'.join(name)} is set in line {before} already: remove one"
            )
    if errors:
        raise ConfigError("the trigger form, overrides:\n  - " + "\n  - ".join(errors))
    return found


def apply(recipe: Recipe, overrides: list[Override]) -> tuple[Recipe, list[str]]:
    """Return the recipe with other settings of verl, and what that changes: ``STAGE.KEY: OLD -> NEW``.

    Args:
        recipe: The recipe.
        overrides: Result of :func:`parse`.

    Raises:
        ConfigError: The settings of a stage do not fit together.
    """
    changes: list[str] = []
    updated: dict[str, TrainStage] = {}
    for stage in STAGES:
        own: TrainStage = getattr(recipe, stage)
        verl = dict(own.verl)
        # A key keeps its "+" from the recipe, and its place.
        names = {key.lstrip("+"): key for key in verl}
        for _, _, key, value in (override for override in overrides if override.stage == stage):
            plain = key.lstrip("+")
            name = names.get(plain, key)
            old = repr(verl[name]) if name in verl else "not in the recipe"
            if old != repr(value):
                changes.append(f"{stage}.{plain}: {old} -> {value!r}")
            verl[name] = value
        if verl != own.verl:
            updated[stage] = _validated(own, verl, stage)
    return recipe.model_copy(update=updated), changes


def _parse_line(number: int, line: str) -> Iterator[Override]:
    parts = _LINE.fullmatch(line)
    stage = parts["stage"] if parts else re.split(r"[.=]", line.lstrip("+"), maxsplit=1)[0]
    if stage not in STAGES:
        raise ValueError(f"starts with {stage!r} instead of {' or '.join(STAGES)}, such as {EXAMPLE}")
    if not parts:
        raise ValueError(f"is not STAGE.KEY=VALUE, such as {EXAMPLE}")
    if parts["key"] in TrainStage.model_fields or parts["key"] in type_of(stage).model_fields:
        raise ValueError(f"{stage}.{parts['key']} is a key of recipes and not of verl: set it in a recipe")
    section, _, below = parts["key"].partition(".")
    if below.partition(".")[0] in _RECIPE_KEYS.get(section, ()) and not parts["before"] + parts["after"]:
        raise ValueError(f"{stage}.{parts['key']} is a key of recipes and not of verl: set it in a recipe")
    if parts["key"].startswith("verl."):
        raise ValueError(f"verl's keys follow the stage directly: {line.replace('.verl.', '.', 1)}")
    if _SEVERAL.match(parts["value"]):
        raise ValueError("has several settings: write each in a line of its own")
    if parts["value"].lstrip().startswith(("&", "*")):
        raise ValueError("the value is an alias of YAML: put it in quotes to mean the text")
    try:
        # As for Hydra, nothing after "=" is an empty text.
        value = yaml.safe_load(parts["value"]) if parts["value"].strip() else ""
    except yaml.YAMLError as error:
        raise ValueError(f"the value is not YAML: {' '.join(str(error).split())}") from None
    add = max(parts["before"], parts["after"])
    for key, one in flatten({f"{add}{parts['key']}": value}).items():
        (item,) = translate(stage, {key: one}).items()
        yield Override(number, stage, *item)


def type_of(stage: Training) -> type[TrainStage]:
    """Return the model of a stage's keys in a recipe."""
    found: type[TrainStage] = Recipe.model_fields[stage].annotation  # type: ignore[assignment]
    return found


def _validated(own: TrainStage, verl: dict[str, Any], stage: str) -> TrainStage:
    try:
        return type(own).model_validate({**own.model_dump(), "verl": verl})
    except ValidationError as error:
        texts = "; ".join(finding["msg"].removeprefix("Value error, ") for finding in error.errors())
        raise ConfigError(f"the trigger form, overrides of {stage}: {texts}") from None
