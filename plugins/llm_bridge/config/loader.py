"""Find and read the YAML files that users edit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterator
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.include import include_dir
from llm_bridge.config.recipe import Recipe
from llm_bridge.config.types import CronLine
from llm_bridge.exceptions import ConfigError

# The example explains every key; it is not a real cluster.
_NOT_OFFERED = {"example"}

# A name is also the id of a task (reap_orphans): one that Airflow refuses would cost the other clusters their sweep.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

# Keys that a file cannot have, and what takes their place.
_ELSEWHERE = {
    "overrides": "It is a field of the trigger form; in a recipe, set verl's own keys under sft.verl and ppo.verl"
}

Model = TypeVar("Model", bound=BaseModel)

_DESCRIPTION = re.compile(r"""^description:[ ]*["']?([^"'#\n]+)""", re.MULTILINE)
# The key in a recipe that is not valid.
_SCHEDULE = re.compile(r"""^schedule:[ ]*["']?([^"'#\n]*[^"'#\s])""", re.MULTILINE)


class _DuplicateKey(Exception):
    """A key stands twice in one mapping."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML loader that refuses a key that stands twice, of which YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value in first and key.tag != "tag:yaml.org,2002:merge":
                raise _DuplicateKey(
                    f"the key {key.value!r} stands twice, in line {first[key.value]} and in line {line}: remove one"
                )
            if isinstance(key, yaml.ScalarNode):
                first[key.value] = line
        return super().construct_mapping(node, deep)


def available(kind: str) -> list[str]:
    """Return the names that the trigger form offers; files with other names are left out.

    Args:
        kind: ``clusters`` or ``recipes``.
    """
    names = (file.stem for file in (include_dir() / kind).glob("*.yaml"))
    return sorted(name for name in names if name not in _NOT_OFFERED and NAME.fullmatch(name))


def titles(kind: str) -> dict[str, str]:
    """Return what the trigger form shows for each name: the name, and the ``description`` of its file.

    The files are not validated: a wrong one is offered, too, and the task ``check`` says what is wrong with it.

    Args:
        kind: ``clusters`` or ``recipes``.
    """
    found = {}
    for name in available(kind):
        text = (include_dir() / kind / f"{name}.yaml").read_text(encoding="utf-8", errors="replace")
        described = _DESCRIPTION.search(text)
        found[name] = f"{name}: {described[1].strip()}" if described else name
    return found


def load_cluster(name: str) -> Cluster:
    """Read ``include/clusters/NAME.yaml``.

    Raises:
        ConfigError: No such file, not YAML, or a wrong key, type or value.
    """
    return _load("clusters", name, Cluster)


def load_recipe(name: str) -> Recipe:
    """Read ``include/recipes/NAME.yaml``.

    Raises:
        ConfigError: As for :func:`load_cluster`.
    """
    return _load("recipes", name, Recipe)


def recipe_values(name: str) -> dict[str, Any]:
    """Return the keys of ``include/recipes/NAME.yaml`` as they are written, not validated.

    Raises:
        ConfigError: No such file, or not YAML.
    """
    return _read("recipes", name)


def nightly_recipes() -> dict[str, str | None]:
    """Return the recipes with a ``schedule``: name -> cron line.

    A recipe that is wrong is among them, so that its DAG exists and its task ``check`` reports the error: one mistake
    must not stop the other nights. The cron line is None where it cannot be read. Nothing is logged, because every task
    of every nightly DAG parses this; :func:`check_recipes` reports it.
    """
    found: dict[str, str | None] = {}
    for name in available("recipes"):
        try:
            if schedule := load_recipe(name).schedule:
                found[name] = schedule
        except ConfigError:
            text = (include_dir() / "recipes" / f"{name}.yaml").read_text(encoding="utf-8", errors="replace")
            if line := _SCHEDULE.search(text):
                found[name] = _cron_or_none(line[1])
    return found


def check_recipes() -> None:
    """Check every recipe.

    Raises:
        ConfigError: Names every error of every recipe.
    """
    errors: list[str] = []
    for name in available("recipes"):
        try:
            load_recipe(name)
        except ConfigError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError("\n".join(errors))


def _cron_or_none(text: str) -> str | None:
    try:
        return TypeAdapter(CronLine).validate_python(text)
    except ValidationError:
        return None


def check_model(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """Validate ``values``.

    Args:
        model: The model to validate against.
        values: Its fields.
        source: The place that a user has to edit, for the error message: a file name or "the trigger form".

    Raises:
        ConfigError: Names source, keys, values and the allowed ones.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise describe_errors(error, model, source) from None


def _not_offered(kind: str) -> str:
    """Return the files that somebody may miss among the names, for an error; empty if there are none."""
    files = (include_dir() / kind).glob("*.y*ml")  # of a missing folder: none
    ignored = sorted(file.name for file in files if file.suffix == ".yml" or not NAME.fullmatch(file.stem))
    if not ignored:
        return ""
    return (
        f". Ignored because of their names: {', '.join(map(repr, ignored))}; rename them to NAME.yaml, with letters, "
        "digits, '_', '-' and '.' in NAME"
    )


def _load(kind: str, name: str, model: type[Model]) -> Model:
    values = _read(kind, name)
    return check_model(model, {"name": name, **values}, f"include/{kind}/{name}.yaml")


def _read(kind: str, name: str) -> dict[str, Any]:
    folder = include_dir() / kind
    # Looking the name up among the files instead of joining it to a path keeps "../" out.
    names = {f.stem: f for f in folder.glob("*.yaml") if NAME.fullmatch(f.stem)}
    if name not in names:
        raise ConfigError(
            f"{name!r} is not one of the {kind} in {folder}: choose from {', '.join(available(kind)) or '(none)'}"
            f"{_not_offered(kind)}"
        )
    path = names[name]
    source = f"include/{kind}/{path.name}"
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except _DuplicateKey as error:
        raise ConfigError(f"{source}: {error}") from None
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise ConfigError(f"{source}, line {line}: not UTF-8 (byte {byte:#04x}): save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror or error}") from None
    if values is None:
        raise ConfigError(f"{source} is empty: see the comments in include/{kind} for the keys")
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected 'key: value' lines, found {type(values).__name__}")
    if "name" in values:
        raise ConfigError(f"{source}: remove 'name': the name is that of the file")
    if "evaluate" in values and values["evaluate"] is None:
        raise ConfigError(
            f"{source}: evaluate is empty: write 'evaluate: {{}}' for its defaults, or remove it"
        )
    return values


def describe_errors(error: ValidationError, model: type[BaseModel], source: str) -> ConfigError:
    """Convert pydantic's errors into one that names file, key, value and the allowed values.

    Args:
        error: Raised by ``model``.
        model: The model that was validated; its field names are the allowed keys.
        source: The place that a user has to edit: a file name or "the trigger form".
    """
    lines = [f"{source} is not valid, {error.error_count()} error(s):"]
    for finding in error.errors():
        key = ".".join(str(part) for part in finding["loc"]) or "(whole file)"
        lines.append(f"  - {key}: {_describe(finding, model)}")
    return ConfigError("\n".join(lines))


def _describe(finding: Any, model: type[BaseModel]) -> str:
    kind, value = finding["type"], finding.get("input")
    if kind == "extra_forbidden":
        hidden = {"name"} if len(finding["loc"]) == 1 else set()  # that of the file
        allowed = sorted(set(_fields_at(model, finding["loc"][:-1])) - hidden)
        return (
            f"no such key. {_hint(model, str(finding['loc'][-1]), allowed)}Allowed here: {', '.join(allowed)}"
        )
    if kind in ("model_type", "dict_type"):
        keys = ", ".join(sorted(_fields_at(model, finding["loc"])))
        return f"expected keys below it, 'key: value'{f', of {keys}' if keys else ''} (got {value!r})"
    if kind == "missing":
        return "this key is required"
    if kind == "string_type" and isinstance(value, int | float):
        return f"must be text: write it in quotes (got {value!r})"
    message = finding["msg"].removeprefix("Value error, ")
    # A validator of a nested value has named it.
    return message if "(got " in message else f"{message} (got {value!r})"


def _hint(model: type[BaseModel], key: str, allowed: list[str]) -> str:
    """Return where a key that is not allowed at its place may belong, as a sentence; an empty text if unknown."""
    if key in _ELSEWHERE:
        return f"{_ELSEWHERE[key]}. "
    if similar := list(_paths(model, key))[:2] or difflib.get_close_matches(key, allowed, n=1):
        return f"Did you mean {' or '.join(similar)}? "
    return "verl's own settings belong under verl. " if "verl" in allowed else ""


def _paths(model: type[BaseModel], key: str, above: str = "") -> Iterator[str]:
    """Yield the places of a model and of its nested ones that have a key."""
    for name, field in model.model_fields.items():
        if name == key:
            yield f"{above}{name}"
        for inner in _inner_types(field.annotation):
            if hasattr(inner, "model_fields"):
                yield from _paths(inner, key, f"{above}{name}.")


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Return the keys that the nested model at ``path`` accepts."""
    current: Any = model
    for part in (part for part in path if isinstance(part, str)):  # an index of a list has no keys of its own
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return []
        current = next((t for t in _inner_types(field.annotation) if hasattr(t, "model_fields")), None)
    return list(getattr(current, "model_fields", {}))


def _inner_types(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", ())
    return [annotation, *(t for a in arguments for t in _inner_types(a))]
