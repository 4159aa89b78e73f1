"""Convert verl's settings into hydra arguments; hydra's quoting rules are implemented here only.

Grammar: https://hydra.cc/docs/1.3/advanced/override_grammar/basic/
"""

from __future__ import annotations

import re
from typing import Any

# "a.b.c", with hydra's "+" (add a key) or "++" (add or change) in front.
_KEY = re.compile(r"\+{0,2}[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*\Z")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def override(key: str, value: Any) -> str:
    """Return one ``key=value`` argument that reaches verl as exactly ``value``.

    Args:
        key: Dotted name, with ``+`` in front where verl's own files do not have it.
        value: None, bool, int, float, str, or lists and dicts of them.

    Raises:
        ValueError: ``key`` is no key, or hydra cannot represent ``value``.
    """
    if not _KEY.match(key):
        raise ValueError(
            f"{key!r} is not a verl key: use letters, digits, '_' and dots, '+' in front to add one"
        )
    return f"{key}={_text(key, value)}"


def overrides(settings: dict[str, Any]) -> list[str]:
    """Return the :func:`override` of each item, in order."""
    return [override(key, value) for key, value in settings.items()]


def _text(key: str, value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _quoted(key, value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_text(key, item) for item in value) + "]"
    if isinstance(value, dict):
        if invalid := [name for name in value if not isinstance(name, str) or not _PLAIN.match(name)]:
            raise ValueError(
                f"{key}: hydra cannot represent the dict key {invalid[0]!r}: use letters, digits and '_' only"
            )
        return "{" + ",".join(f"{name}:{_text(key, item)}" for name, item in value.items()) + "}"
    raise ValueError(f"{key}: hydra cannot represent a {type(value).__name__}: {value!r}")


def _quoted(key: str, text: str) -> str:
    if text == "???":
        raise ValueError(f"{key}: hydra reads '???' as a missing value")
    # OmegaConf, which stores the value, interpolates ${...} unless a backslash precedes it; backslashes before that
    # one then have to be doubled.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    # hydra: the same for a quote inside the text, and for the closing quote.
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)\Z", r"\1\1", text)
    return f"'{text}'"
