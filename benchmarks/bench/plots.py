"""Draw the plots of docs/performance.md from report.json; runs with the peers' Python, which has matplotlib.

plots.py REPORT FOLDER     prints {file name: title}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
# Text as text, and the same file for the same figures.
matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "llm-bridge", "font.size": 9}

from matplotlib import pyplot  # noqa: E402

TICKS = (0.1, 0.3, 1, 3, 10, 30, 100)


def save(figure: Any, folder: Path, name: str) -> None:
    """Write a plot."""
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def notice(found: dict[str, Any], folder: Path) -> str:
    """Draw the share of ends that were noticed after a number of seconds."""
    figure, axes = pyplot.subplots(figsize=(6, 3))
    for name, run in found.items():
        late = run["all_late_s"]
        if late:
            axes.step(
                late, [(n + 1) / run["jobs"] for n in range(len(late))], where="post", label=f"{name} jobs"
            )
    axes.set_xscale("log")
    axes.set_xticks(TICKS, [str(tick) for tick in TICKS])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="seconds after the job's end", ylabel="share of the ends noticed", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7)
    save(figure, folder, "performance-notice")
    return "Share of the jobs' ends that were noticed, by seconds"


def rpcs(found: dict[str, Any], folder: Path) -> str:
    """Draw RPCs a minute, waiting and ending."""
    figure, axes = pyplot.subplots(figsize=(6, 2.4))
    names = list(found)
    for shift, phase in ((-0.2, "waiting"), (0.2, "ending")):
        values = [
            run[phase]["slurmctld_a_minute"] + run[phase]["slurmdbd_a_minute"] for run in found.values()
        ]
        bars = axes.barh([n + shift for n in range(len(names))], values, height=0.38, label=f"jobs {phase}")
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
    axes.set_yticks(range(len(names)), [f"{name} jobs" for name in names])
    axes.set(xlabel="RPCs to slurmctld and slurmdbd a minute")
    axes.legend(frameon=False, fontsize=7)
    save(figure, folder, "performance-rpcs")
    return "RPCs a minute to slurmctld and slurmdbd"


DRAWN = {"notice": ("performance-notice", notice), "rpcs": ("performance-rpcs", rpcs)}

if __name__ == "__main__":
    report, target = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    print(
        json.dumps(
            {name: draw(report[key]["found"], target) for key, (name, draw) in DRAWN.items() if key in report}
        )
    )
