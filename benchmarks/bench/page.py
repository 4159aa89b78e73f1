"""Show the figures as a table, and write them with their plots into docs/performance.md."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.bench.support import FOLDER, Figure, Section, peers_python
from testing import paths

PAGE = paths.ROOT / "docs" / "performance.md"
IMAGES = paths.ROOT / "docs" / "images"
# The generated part of the page.
BEGIN, END = "<!-- make bench writes what follows -->", "<!-- up to here -->"


def number(value: float | None) -> str:
    """Return a value with three digits that count."""
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def cells(figure: Figure) -> list[str]:
    """Return a row: figure, goal, ours, peers, ratios."""
    goal = "" if figure.goal is None else f"{'≥' if figure.at_least else '≤'} {number(figure.goal)}"
    ours = number(figure.ours) + {True: "", False: " (missed)", None: ""}[figure.met]
    peers = "; ".join(f"{name} {number(value)}" for name, value in figure.peers.items())
    ratios = "; ".join(number(ratio) for ratio in figure.ratios().values())
    return [figure.what, goal, ours, peers, ratios]


def show(sections: Iterable[Section], report: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(show_lines=False)
    for column in ("figure", "goal", "ours", "peers", "ours : peer"):
        table.add_column(column, overflow="fold")
    for section in sections:
        if section.name in report:
            for figure in section.figures(report[section.name]["found"]):
                table.add_row(*(escape(text) for text in cells(figure)))
            table.add_section()
    Console(width=160).print(table)


def write(sections: Iterable[Section], report: dict[str, Any]) -> None:
    """Write the generated part of the page, and the plots."""
    lines = [BEGIN, ""]
    lines += [
        "| figure | goal | ours | peers | ours : peer | measured |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for section in sections:
        if section.name not in report:
            continue
        about = report[section.name]
        loads = " to ".join(str(value) for value in about["load"])
        when = f"{about['at'][:10]}, {about['cpus']} cores, load {loads}"
        for figure in section.figures(about["found"]):
            row = " | ".join([*cells(figure), when])
            lines.append(f"| {row} |")
    notes = {
        figure.note: None
        for section in sections
        if section.name in report
        for figure in section.figures(report[section.name]["found"])
        if figure.note
    }
    lines += ["", *(f"* {note}." for note in notes), ""]
    lines += [f"![{title}](images/{name}.svg)" for name, title in _plots(report).items()]
    text = PAGE.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(before + "\n".join([*lines, "", END]) + after)


def _plots(report: dict[str, Any]) -> dict[str, str]:
    """Draw the plots; return file name -> title."""
    if not {"notice", "rpcs"} & set(report):
        return {}  # needs no peers' environment then
    file = FOLDER / "plots.json"
    argv = [
        str(peers_python()),
        str(Path(__file__).with_name("plots.py")),
        str(FOLDER / "report.json"),
        str(IMAGES),
    ]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    file.write_text(done.stdout)
    titles: dict[str, str] = json.loads(done.stdout)
    return titles
