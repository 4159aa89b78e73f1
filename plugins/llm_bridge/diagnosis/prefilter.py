"""Extract literal texts from regular expressions, so that most lines of a log are skipped by a substring search."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# Python's own parser of regular expressions. It is not public: without it every line is searched, which takes longer.
_parser: Any = getattr(re, "_parser", None)
# Shorter literals occur in too many lines to be a useful filter.
MIN_WORD_LENGTH = 4


def words_of(pattern: str) -> list[str] | None:
    """Return texts of which every match of ``pattern`` contains at least one; None if the pattern has no such texts."""
    if _parser is None:
        return None
    found = _of_sequence(_parser.parse(pattern))
    return sorted(found) if found else None


def _of_sequence(parsed: Iterable[tuple[Any, Any]]) -> set[str] | None:
    """Return the most selective texts of a sequence, whose parts all have to match."""
    best: set[str] | None = None
    run = ""
    for name, value in [*parsed, (None, None)]:
        if str(name) == "LITERAL":
            run += chr(value)
            continue
        for candidate in ({run} if len(run) >= MIN_WORD_LENGTH else None, _of_part(str(name), value)):
            if candidate and (best is None or _min_length(candidate) > _min_length(best)):
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


def _min_length(words: set[str]) -> int:
    return min(len(word) for word in words)
