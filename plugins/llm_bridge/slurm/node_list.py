"""Count the nodes in Slurm's node lists, such as ``gpu[94-95,97],big1``."""

from __future__ import annotations

import re
from math import prod

# Commas outside brackets separate expressions.
_EXPRESSION = re.compile(r"(?:\[[^\]]*\]|[^,\[])+")
_BRACKETS = re.compile(r"\[([^\]]*)\]")


def count_nodes(text: str) -> int:
    """Return the number of nodes in a node list.

    Args:
        text: Slurm's node list, or the path of a file with one; that counts as no node.
    """
    if "/" in text:
        return 0
    return sum(prod(map(_ranges, _BRACKETS.findall(part))) for part in _EXPRESSION.findall(text))


def _ranges(text: str) -> int:
    """Return the number of numbers in the text between two brackets, such as ``094-096,101``."""
    total = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        total += int(last) - int(first) + 1 if first.isdigit() and last.isdigit() else 1
    return total
