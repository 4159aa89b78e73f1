"""Find and read the YAML files that users edit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.errors import ConfigError, explain
from llm_bridge.config.recipe import Recipe

# The example explains every key; it is nobody's cluster.
_NOT_OFFERED = {"example"}

Model = TypeVar("Model", bound=BaseModel)


def include_dir() -> Path:
    """``include/`` beside ``plugins/``; ``LLM_BRIDGE_INCLUDE`` points elsewhere."""
    default = Path(__file__).resolve().parents[3] / "include"
    return Path(os.environ.get("LLM_BRIDGE_INCLUDE", default))


def available(kind: str) -> list[str]:
    """Names that can be chosen: ``kind`` is ``clusters`` or ``recipes``."""
    return sorted(f.stem for f in (include_dir() / kind).glob("*.yaml") if f.stem not in _NOT_OFFERED)


def load_cluster(name: str) -> Cluster:
    """Read ``include/clusters/NAME.yaml``.

    :raises ConfigError: no such file, not YAML, or a wrong key, type or value.
    """
    return _load("clusters", name, Cluster)


def load_recipe(name: str) -> Recipe:
    """Read ``include/recipes/NAME.yaml``.

    :raises ConfigError: as for :func:`load_cluster`.
    """
    return _load("recipes", name, Recipe)


def check_model(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """Validate ``values``; what is wrong is told in terms of ``source``."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise explain(error, model, source) from None


def _load(kind: str, name: str, model: type[Model]) -> Model:
    folder = include_dir() / kind
    # Looking the name up among the files, rather than joining it to a path, keeps "../" out.
    names = {f.stem: f for f in folder.glob("*.yaml")}
    if name not in names:
        raise ConfigError(
            f"{name!r} is not one of the {kind} in {folder}: choose from {', '.join(available(kind)) or '(none)'}"
        )
    path = names[name]
    source = f"include/{kind}/{path.name}"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected 'key: value' lines, found {type(values).__name__}")
    if "name" in values:
        raise ConfigError(f"{source}: remove 'name': a file's name is its name")
    return check_model(model, {"name": name, **values}, source)
