"""Rules for the metadata of model cards; a small part of the Hub's."""

from __future__ import annotations

import re
from typing import Any

import yaml

_METADATA = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|\Z)", re.DOTALL)
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def card_problems(text: str) -> list[str]:
    """Return the reasons to refuse a card; none if it is valid, or has no metadata."""
    found = _METADATA.match(text)
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        return [f"the metadata is not YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"]
    problems = [
        f'"{key}" must be an id or a list of ids, not {data[key]!r}'
        for key in ("base_model", "datasets")
        if key in data and not all(_ID.fullmatch(str(name)) for name in _as_list(data[key]))
    ]
    problems += [
        f'"{key}" must be a string'
        for key in ("library_name", "pipeline_tag", "license")
        if _wrong(data, key)
    ]
    if not all(isinstance(tag, str) for tag in _as_list(data.get("tags", []))):
        problems.append('"tags" must be strings')
    return problems + _index_problems(data.get("model-index", []))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _wrong(data: dict[str, Any], key: str) -> bool:
    return key in data and not isinstance(data[key], str | list)


def _index_problems(index: Any) -> list[str]:
    """Return the problems of the evaluation results: each needs a task, a data set and metrics with their values."""
    problems = []
    for model in _as_list(index):
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            problems.append('"model-index[].name" is required')
            continue
        for result in _as_list(model.get("results", [])):
            for group, key in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                if not isinstance((result.get(group) or {}).get(key), str):
                    problems.append(f'"model-index[].results[].{group}.{key}" is required')
            for metric in _as_list(result.get("metrics") or [{}]):
                if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                    problems.append('"model-index[].results[].metrics[]" needs type and value')
    return problems
