"""verl's settings as arguments for hydra; the only place that knows hydra's quoting.

Grammar: https://hydra.cc/docs/1.3/advanced/override_grammar/basic/
"""

from __future__ import annotations

import re
from typing import Any

# "a.b.c", with hydra's "+" (add a key) or "++" (add or change) in front.
_KEY = re.compile(r"\+{0,2}[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*\Z")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def override(key: str, value: Any) -> str:
    """One ``key=value`` argument that reaches verl as exactly ``value``.

    :param key: dotted name, ``+`` in front where verl's own files do not have it.
    :param value: None, bool, int, float, str, or lists and dicts of them.
    :raises ValueError: not a key, or a value that hydra cannot carry.
    """
    if not _KEY.match(key):
        raise ValueError(f"{key!r} is not a verl key: letters, digits, '_' and dots, '+' in front to add one")
    return f"{key}={_text(key, value)}"


def overrides(settings: dict[str, Any]) -> list[str]:
    """``override`` for each item, in order."""
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
        if odd := [name for name in value if not isinstance(name, str) or not _PLAIN.match(name)]:
            raise ValueError(
                f"{key}: hydra cannot carry the dict key {odd[0]!r}: letters, digits and '_' only"
            )
        return "{" + ",".join(f"{name}:{_text(key, item)}" for name, item in value.items()) + "}"
    raise ValueError(f"{key}: hydra cannot carry a {type(value).__name__}: {value!r}")


def _quoted(key: str, text: str) -> str:
    if text == "???":
        raise ValueError(f"{key}: hydra reads '???' as a missing value")
    # OmegaConf, which keeps the value, replaces ${...}; a backslash in front stops it, and then
    # backslashes before that one count double.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    # hydra: the same for a quote, in the middle or at the end.
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)\Z", r"\1\1", text)
    return f"'{text}'"
