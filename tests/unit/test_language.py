"""Docstrings of the package: an imperative or a noun comes first, and sections are in Google style."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from testing.paths import PLUGINS, ROOT

PACKAGE = PLUGINS / "llm_bridge"
OWNERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NOT_FIRST = re.compile(r"\W*(What|Whether|Who|Which|How|Why|Where|When|As|By|So|See)\b")
SPHINX_FIELD = re.compile(r":(param\b[^:\n]*|returns?|raises\b[^:\n]*):")


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield the place (``file:line``) and the text of every docstring, those of attributes included."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            for statement in node.body if isinstance(node, OWNERS) else ():
                value = statement.value if isinstance(statement, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield f"{path.relative_to(ROOT)}:{value.lineno}", value.value


def test_every_docstring_starts_with_an_imperative_or_a_noun() -> None:
    wrong = [f"{place}: {text.splitlines()[0]}" for place, text in docstrings() if NOT_FIRST.match(text)]
    assert not wrong, "\n".join(["reword the beginning of these docstrings:", *wrong])


def test_no_docstring_has_a_field_of_sphinx() -> None:
    found = [(place, SPHINX_FIELD.search(text)) for place, text in docstrings()]
    wrong = [f"{place}: {field.group()}" for place, field in found if field]
    assert not wrong, "\n".join(["use the sections Args, Returns and Raises:", *wrong])
