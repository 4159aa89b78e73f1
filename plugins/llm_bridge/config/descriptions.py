"""Descriptions of the keys of cluster files and recipes, from the docstrings of their models."""

from __future__ import annotations

import inspect
import re

from llm_bridge.config.types import FrozenModel


def descriptions(model: type[FrozenModel]) -> dict[str, str]:
    """Return the description of each field: its own, or that in the docstrings of the model and its bases.

    Args:
        model: Model of a part of a file.

    Raises:
        ValueError: A field has no description.
    """
    documented: dict[str, str] = {}
    for base in reversed(model.__mro__):
        documented |= _attributes(inspect.cleandoc(base.__doc__ or ""))
    found = {
        name: field.description or documented.get(name, "") for name, field in model.model_fields.items()
    }
    if missing := sorted(name for name, text in found.items() if not text):
        raise ValueError(f"{model.__name__} describes none of {', '.join(missing)}")
    return found


def _attributes(doc: str) -> dict[str, str]:
    """Return the section Attributes of a docstring, name -> text."""
    _, _, section = doc.partition("\nAttributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
