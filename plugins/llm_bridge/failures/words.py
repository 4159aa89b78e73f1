"""Words that a line must have for a regular expression to match: most lines of a log are passed over by these alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# Python's own parser of regular expressions: not public, so without it every line is searched, which takes longer.
_parser: Any = getattr(re, "_parser", None)
SHORTEST = 4


def words_of(pattern: str) -> list[str] | None:
    """Texts of which every match of ``pattern`` has at least one; None where there are none so plain."""
    if _parser is None:
        return None
    found = _of_sequence(_parser.parse(pattern))
    return sorted(found) if found else None


def _of_sequence(parsed: Iterable[tuple[Any, Any]]) -> set[str] | None:
    """Of parts that all have to match: the part that says most."""
    best: set[str] | None = None
    run = ""
    for name, value in [*parsed, (None, None)]:
        if str(name) == "LITERAL":
            run += chr(value)
            continue
        for candidate in ({run} if len(run) >= SHORTEST else None, _of_part(str(name), value)):
            if candidate and (best is None or _shortest(candidate) > _shortest(best)):
                best = candidate
        run = ""
    return best


def _of_part(name: str, value: Any) -> set[str] | None:
    if name == "SUBPATTERN":
        return _of_sequence(value[-1])
    if name == "BRANCH":
        sides = [_of_sequence(side) for side in value[1]]
        return set().union(*(side for side in sides if side)) if all(sides) else None
    if name == "MAX_REPEAT" and value[0] >= 1:
        return _of_sequence(value[2])
    return None


def _shortest(words: set[str]) -> int:
    return min(len(word) for word in words)
