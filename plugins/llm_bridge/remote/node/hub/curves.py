"""Curves of a training as an SVG picture for the model card, from the metrics of its attempts.

Standard library only: jobs need no plotting library. The same metrics give the same bytes, so that a
repeated upload makes no new commit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from llm_bridge.remote import attempt_dir

FILE = "training_curves.svg"
# Panel -> its curves: each the names that the metric may have in verl, of which the first that is present counts.
PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "SFT: loss": {"training": ("train/loss",), "validation": ("val/loss",)},
    "RL: reward": {"training": ("critic/score/mean", "critic/rewards/mean")},
    "RL: response length (tokens)": {"training": ("response_length/mean",)},
}
COLORS = ("#1f77b4", "#ff7f0e")
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 220, 70, 30, 30
# More points than pixels cannot be seen.
MAX_POINTS = 500

# Step -> value.
Curve = dict[int, float]


def read(directories: list[str]) -> dict[str, Curve]:
    """Return the metrics of a training: name -> step -> value.

    An attempt that resumes from a checkpoint, or starts from zero, replaces the steps from there on.

    Args:
        directories: The attempts' directories.
    """
    lines = sorted((line for path in directories for line in _lines(path)), key=lambda line: line[0])
    found: dict[str, Curve] = {}
    for _, step, data in lines:
        for name, value in data.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                curve = found.setdefault(name, {})
                for later in [known for known in curve if known > step]:
                    del curve[later]
                curve[step] = float(value)
    return found


def _lines(attempt: str) -> Iterator[tuple[float, int, dict[str, Any]]]:
    """Yield time, step and values of each line; the last one of a killed training may be cut."""
    try:
        text = Path(attempt, attempt_dir.METRICS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            found = json.loads(line)
            yield float(found.get("time") or 0), int(found["step"]), dict(found["data"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


def draw(jobs: list[dict[str, Any]]) -> str | None:
    """Return the picture; None where no metric has two steps.

    Args:
        jobs: Key ``jobs`` of the card's facts (``pipeline/publication.py``).
    """
    directories = [
        attempt
        for job in jobs
        for attempt in (
            *attempt_dir.attempts_in(job["directory"]),
            *attempt_dir.ray_jobs_in(job["directory"]),
        )
    ]
    metrics = read(directories)
    panels = []
    for title, wanted in PANELS.items():
        named = {label: next((n for n in names if n in metrics), "") for label, names in wanted.items()}
        curves = {label: metrics[name] for label, name in named.items() if len(metrics.get(name, ())) > 1}
        if curves:
            panels.append((title, curves))
    if not panels:
        return None
    drawn = [_panel(title, curves, HEIGHT * number) for number, (title, curves) in enumerate(panels)]
    size = f'width="{WIDTH}" height="{HEIGHT * len(panels)}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def _panel(title: str, curves: dict[str, Curve], y: int) -> str:
    steps = [step for curve in curves.values() for step in curve]
    values = [value for curve in curves.values() for value in curve.values()]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    width, height = WIDTH - LEFT - 20, HEIGHT - TOP - BOTTOM
    bottom = y + TOP + height

    def x_of(step: int) -> float:
        return LEFT + width * (step - first) / (last - first)

    def y_of(value: float) -> float:
        # Divided first: the difference of large values may be infinite.
        share = 0.5 if high == low else (value / 2 - low / 2) / (high / 2 - low / 2)
        return bottom - height * share

    parts = [
        f'<text x="{LEFT}" y="{y + 20}" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{LEFT}" y="{y + TOP}" width="{width}" height="{height}" fill="none" stroke="#cccccc"/>',
        *(
            f'<text x="{LEFT - 6}" y="{y_of(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>'
            for value in sorted({low, high})
        ),
        f'<text x="{LEFT}" y="{bottom + 16}">step {first}</text>',
        f'<text x="{LEFT + width}" y="{bottom + 16}" text-anchor="end">step {last}</text>',
    ]
    for number, (label, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        points = " ".join(f"{x_of(step):.1f},{y_of(value):.1f}" for step, value in _thinned(curve))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        if len(curves) > 1:
            x = LEFT + width - 90 * (len(curves) - number)
            parts.append(f'<text x="{x}" y="{y + 20}" fill="{color}">{escape(label)}</text>')
    return "\n".join(parts)


def _thinned(curve: Curve) -> list[tuple[int, float]]:
    """Return at most MAX_POINTS points of a curve, in order, the last one among them."""
    points = sorted(curve.items())
    each = -(-len(points) // MAX_POINTS)
    return points[(len(points) - 1) % each :: each]
