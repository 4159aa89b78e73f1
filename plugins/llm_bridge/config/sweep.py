"""Grid of a sweep: lines ``KEY = VALUE, VALUE, …``, whose combinations are one run each.

A key is one of the form's field *Overrides* (``sft.KEY`` and ``ppo.KEY``, with the same values), one of its fields for
keys of the recipe (``data.max_rows``), or ``recipe``, ``base_model`` or ``nodes``. A value with a comma stands in
quotes, brackets or braces. Empty lines and what follows a ``#`` with a space before it are ignored.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from llm_bridge.config import overrides
from llm_bridge.config.recipe_keys import KEYS, messages
from llm_bridge.exceptions import ConfigError

MAX_POINTS = 64
# Fields of the trigger form that may differ between the runs; a setting of verl is a line of Overrides.
FIELDS = ("recipe", "base_model", "nodes", *(name for name, key in KEYS.items() if not key.verl))
EXAMPLE = "ppo.actor_rollout_ref.actor.optim.lr = 1.0e-6, 3.0e-6"
_CLOSING = {"[": "]", "{": "}", "(": ")"}


class Axis(NamedTuple):
    """One line: a key and the texts of its values."""

    line: int
    key: str
    values: list[str]


class Point(NamedTuple):
    """One combination.

    Attributes:
        settings: Key -> text of its value, in the order of the lines.
    """

    settings: dict[str, str]

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the trigger form, with values as it has them."""
        return {key: _field_value(key, value) for key, value in self.settings.items() if key in FIELDS}

    @property
    def overrides(self) -> str:
        """Lines of the form's field *Overrides*."""
        return "\n".join(f"{key}={value}" for key, value in self.settings.items() if key not in FIELDS)

    @property
    def text(self) -> str:
        """Name of it for people: the last part of each key, or all of it where two have the same, and its value."""
        last = [key.rpartition(".")[2] for key in self.settings]
        names = (key if last.count(name) > 1 else name for key, name in zip(self.settings, last, strict=True))
        return ", ".join(f"{name}={value}" for name, value in zip(names, self.settings.values(), strict=True))


def parse(text: str) -> list[Point]:
    """Return the points of a grid; the last line changes first.

    Args:
        text: The field of the form.

    Raises:
        ConfigError: Names every line that cannot be used, with its number, or the number of points.
    """
    axes: list[Axis] = []
    errors: list[str] = []
    for number, line in overrides.lines(text):
        try:
            axis = _parse_line(number, line)
            before = next((a.line for a in axes if _plain(a.key) == _plain(axis.key)), None)
            if before:
                raise ValueError(
                    f"{_plain(axis.key)} is set in line {before} already: write all its values there"
                )
            axes.append(axis)
        except (ValueError, ConfigError) as error:
            errors.append(f"line {number} ({line}): {error}")
    if errors:
        raise ConfigError("the trigger form, sweep:\n  - " + "\n  - ".join(errors))
    if not axes:
        raise ConfigError(f"the trigger form, sweep: the grid is empty: write a line such as {EXAMPLE}")
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_POINTS:
        sizes = " x ".join(str(len(axis.values)) for axis in axes)
        raise ConfigError(
            f"the trigger form, sweep: {sizes} = {count} runs, but at most {MAX_POINTS} are allowed: give fewer values"
        )
    keys = [axis.key for axis in axes]
    combinations = itertools.product(*(axis.values for axis in axes))
    return [Point(dict(zip(keys, values, strict=True))) for values in combinations]


def _plain(key: str) -> str:
    return key.replace("+", "")


def _parse_line(number: int, line: str) -> Axis:
    key, equals, text = (part.strip() for part in line.partition("="))
    if not equals:
        raise ValueError(f"is not KEY = VALUE, VALUE, such as {EXAMPLE}")
    if key not in FIELDS and re.split(r"\.", key.lstrip("+"), maxsplit=1)[0] not in overrides.STAGES:
        stages = ", ".join(f"{stage}.KEY" for stage in overrides.STAGES)
        raise ValueError(f"{key!r} is no key of a sweep: allowed are {stages}, {', '.join(FIELDS)}")
    values = [value.strip() for value in _split(text)]
    if not all(values):
        raise ValueError("a value is empty: remove the comma, or write '' for an empty text")
    if key in FIELDS:
        values = [_text(key, value) for value in values]
    meanings: list[Any] = []
    for value in values:
        meaning = _field_value(key, value) if key in FIELDS else _override_value(key, value)
        if meaning in meanings:
            same = values[meanings.index(meaning)]
            raise ValueError(
                f"the value {value} stands twice: remove one"
                if value == same
                else f"the values {same} and {value} are equal: remove one"
            )
        meanings.append(meaning)
    return Axis(number, key, values)


def _override_value(key: str, value: str) -> Any:
    """Return what a line of *Overrides* sets; true is not equal to 1."""
    try:
        found = overrides.parse(f"{key}={value}")
    except ConfigError as error:  # with the line of a text that nobody has written
        raise ValueError(str(error).rpartition("): ")[2]) from None
    return [(each.key, isinstance(each.value, bool), each.value) for each in found]


def _is_list(key: str) -> bool:
    return key in KEYS and KEYS[key].schema()["type"] == "array"


def _text(key: str, value: str) -> str:
    """Return the text of a field's value: fields are texts, also where YAML reads "no" or "007" otherwise."""
    try:
        found = yaml.load(value, Loader=yaml.BaseLoader)  # which makes texts, lists and mappings only
    except yaml.YAMLError as error:
        raise ValueError(f"the value is not YAML: {' '.join(str(error).split())}") from None
    if _is_list(key):
        return value
    if not isinstance(found, str):
        raise ValueError(f"{value} is not a text")
    return found


def _field_value(key: str, text: str) -> Any:
    """Return a value of the form's field from its text."""
    if key not in KEYS:
        return text
    try:
        read = KEYS[key].read(yaml.load(text, Loader=yaml.BaseLoader) if _is_list(key) else text)
    except ValidationError as error:
        raise ValueError("; ".join(messages(error))) from None
    return (
        str(read).lower() if isinstance(read, bool) else read
    )  # as the form has it: a choice between two texts


def _split(text: str) -> Iterator[str]:
    """Yield the parts of a text between commas that are in no quotes and no brackets.

    Raises:
        ValueError: A quote or a bracket is not closed.
    """
    part, expected, quote = "", [], ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"" and not part.strip():
            quote = char
        elif char in _CLOSING:
            expected.append(_CLOSING[char])
        elif expected and char == expected[-1]:
            expected.pop()
        elif char == "#" and part[-1:].isspace():
            break  # a comment, as in YAML
        elif char == "," and not expected:
            yield part
            part = ""
            continue
        part += char
    if quote or expected:
        raise ValueError(f"{quote or expected[-1]} is missing at the end of a value")
    yield part
