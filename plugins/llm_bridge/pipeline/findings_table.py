"""Show findings of a doctor as a table, and name the errors among them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_bridge.remote.messages import ERROR, OK, SKIPPED, WARNING, Finding

STYLES = {OK: "green", WARNING: "yellow", ERROR: "bold red", SKIPPED: "dim"}
# Of a log, which has no width of its own.
LOG_WIDTH = 160


def print_table(findings: Iterable[Finding], console: Console) -> None:
    """Print a table: check, result, detail, what to do.

    Args:
        findings: Its rows.
        console: Prints it; texts of findings are data, never markup.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("check", ratio=2, overflow="fold")
    table.add_column("result", no_wrap=True)
    table.add_column("found", ratio=6, overflow="fold")
    table.add_column("what to do", ratio=5, overflow="fold")
    for finding in findings:
        style = STYLES[finding.result]
        table.add_row(
            Text(finding.check), Text(finding.result, style), Text(finding.detail), Text(finding.action)
        )
    console.print(table)


def as_text(findings: Iterable[Finding]) -> str:
    """Return the table for a log, without colours."""
    stream = io.StringIO()
    print_table(findings, Console(file=stream, width=LOG_WIDTH, color_system=None))
    return stream.getvalue()


def as_values(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings as JSON values."""
    return [finding._asdict() for finding in findings]


def as_json(cluster: str, findings: Sequence[Finding]) -> str:
    """Return the findings as text for programs.

    Args:
        cluster: Name of the cluster file.
        findings: The findings.
    """
    values = {"cluster": cluster, "errors": len(errors(findings)), "findings": as_values(findings)}
    return json.dumps(values, indent=2, ensure_ascii=False)


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Return the errors among findings."""
    return [finding for finding in findings if finding.result == ERROR]


def summary(findings: Sequence[Finding]) -> str:
    """Return one line with the number of each result, and the names of the errors."""
    counts = {result: sum(each.result == result for each in findings) for result in STYLES}
    text = ", ".join(f"{count} {result}" for result, count in counts.items() if count)
    names = list(dict.fromkeys(finding.check for finding in errors(findings)))
    return f"{text}; errors: {', '.join(names)}" if names else text
