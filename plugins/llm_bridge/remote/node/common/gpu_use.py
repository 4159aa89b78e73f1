"""Sample the use of this node's GPUs while a program runs, for the curves of the run page."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common import programs

INTERVAL_SECONDS = 30.0
TIMEOUT_SECONDS = 20.0
FIELDS = ("index", "utilization.gpu", "memory.used", "memory.total")


def parse(text: str) -> list[dict[str, float]]:
    """Return the GPUs in nvidia-smi's answer, without values that a GPU does not report (``[N/A]``, as with MIG)."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(FIELDS):
            names = ("index", "percent", "memory_mib", "total_mib")
            found.append({name: float(cell) for name, cell in zip(names, cells) if cell.isdigit()})  # noqa: B905
    return found


def _sample(path: Path) -> None:
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible and not visible.startswith("MIG"):
        command.append(f"--id={visible}")
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        answer = programs.run(command, TIMEOUT_SECONDS)
        gpus = parse(answer.stdout) if answer.returncode == 0 else []
        if gpus:
            row: dict[str, Any] = {"time": round(time.time(), 1), "gpus": gpus}
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def sampled(attempt: Path, interval: float = INTERVAL_SECONDS) -> Iterator[None]:
    """Sample in a thread until the context ends; without nvidia-smi do nothing. No error of it ends the program.

    Args:
        attempt: The attempt's directory.
        interval: Seconds between two samples.
    """
    if not shutil.which("nvidia-smi"):
        yield
        return
    node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    path, over = attempt / attempt_dir.gpu_use(node), threading.Event()

    def work() -> None:
        while not over.is_set():
            _sample(path)
            over.wait(interval)

    threading.Thread(target=work, daemon=True).start()
    try:
        yield
    finally:
        over.set()
