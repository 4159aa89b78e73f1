"""Prepare many short rows, and map the same function over them with Hugging Face datasets: seconds and memory of both.

Runs with the Python of the cluster's environment (make data-report): python -m benchmarks.data_report [ROWS]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = 10_000_000
SPECIFICATION = {
    "format": "columns",
    "columns": {"prompt": "question", "response": "answer", "truth": None, "messages": None},
    **{"system": None, "template": None, "data_source": None, "test_fraction": 0.02},
    **{"duplicates": "drop", "too_long": "keep", "leaked": "keep"},
}
ONE = {
    "config": None,
    "revision": None,
    "split": "train",
    "test_split": None,
    "weight": None,
    "max_rows": None,
}


def main() -> None:
    """Write the rows, measure both in processes of their own, and print the comparison as JSON."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory(prefix="llm-bridge-data-") as scratch:
        source = Path(scratch) / "rows.jsonl"
        with source.open("w", encoding="utf-8") as file:
            for n in range(rows):
                row = {"question": f"What is {n} + {n % 97}?", "answer": f"{n} + {n % 97} = {n + n % 97}"}
                file.write(json.dumps(row) + "\n")
        found = {}
        for name in ("prepare", "datasets"):
            argv = [sys.executable, "-m", "benchmarks.data_report", name, str(source), f"{scratch}/{name}"]
            ended = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
            found[name] = json.loads(ended.stdout.splitlines()[-1])
    ratios = {
        f"datasets_to_prepare_{key}": round(found["datasets"][key] / found["prepare"][key], 2)
        for key in ("seconds", "cpu_seconds", "peak_mib")
    }
    print(json.dumps({"rows": rows, **found, **ratios}, indent=2))


def prepare(source: Path, scratch: Path) -> None:
    """Prepare the rows as the stage does, duplicates dropped."""
    from llm_bridge.remote.node.data import build

    (scratch / "ready").mkdir(parents=True)
    specification = SPECIFICATION | {"sources": [{"source": str(source), **ONE}]}
    build.build(specification, scratch / "ready", scratch, scratch / "final")


def datasets_map(source: Path, scratch: Path) -> None:
    """Load and convert the rows with datasets, which writes them to its cache: no split, no search for duplicates."""
    import datasets

    from llm_bridge.remote.node.data.shapes import shape

    form = shape(SPECIFICATION, str(source))
    loaded: Any = datasets.load_dataset(
        "json", data_files=str(source), split="train", cache_dir=str(scratch / "cache")
    )
    loaded.map(form.make, remove_columns=["question", "answer"])


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def measure(name: str, source: Path, scratch: Path) -> None:
    """Run one of both, and print its seconds and memory."""
    begin = time.monotonic()
    {"prepare": prepare, "datasets": datasets_map}[name](source, scratch)
    seconds = round(time.monotonic() - begin, 1)
    cpu = round(time.process_time(), 1)
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak_bytes() >> 20}))


if __name__ == "__main__":
    if sys.argv[1:2] in (["prepare"], ["datasets"]):
        measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
