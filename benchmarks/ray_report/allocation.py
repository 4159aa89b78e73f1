"""The three allocation modes, each with a run of the whole pipeline.

For failed SFT in each mode see tests/operators/test_allocation.py.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, get_args

from benchmarks.ray_report.support import Row, Section
from llm_bridge.config.recipe import Allocation
from testing.local_cluster import LocalCluster
from testing.paths import home
from testing.stack import DAG, RECIPE, LocalStack

LIMIT_SECONDS = 1800


def run(cluster: LocalCluster) -> dict[str, Any]:
    """Start a whole stack with its own cluster and run the pipeline in each mode; ``cluster`` is not used."""
    # Not below /tmp, which is another folder on each host of the cluster.
    with tempfile.TemporaryDirectory(dir=home(), prefix="ray-report-") as folder:
        stack = LocalStack(Path(folder), LocalCluster("raymodes", ssh_port=22923))
        stack.conf = {"recipe": RECIPE, "cluster": stack.site.name}
        try:
            stack.start()
            stack.ready(DAG)
            return {"modes": {mode: _one(stack, mode) for mode in get_args(Allocation)}}
        finally:
            stack.stop()


def _one(stack: LocalStack, mode: str) -> dict[str, Any]:
    api, name = stack.api, mode
    began = time.monotonic()
    state = stack.run(DAG, name, LIMIT_SECONDS, allocation=mode)
    took = time.monotonic() - began
    jobs = [api.xcom(DAG, name, task, "slurm_job") for task in ("sft.train", "ppo.ray_up")]
    up = api.xcom(DAG, name, "ppo.ray_up") or {}
    trained = Path(
        api.xcom(DAG, name, "check")["directory"], "sft/checkpoints/latest_checkpointed_iteration.txt"
    )
    summary = api.xcom(DAG, name, "summary", "summary") or {}
    return {
        "state": state,
        "took_s": round(took, 1),
        "stages": {row["name"]: row["state"] for row in summary.get("stages", [])},
        "gpu_jobs": sorted({job["job_id"] for job in jobs if job}),
        "directory_of_ray": up.get("directory"),
        "from_sft_to_ray_s": round(up["result"]["phases"]["verified"] - trained.stat().st_mtime, 1)
        if up
        else None,
        "left_in_queue": stack.queue(),
    }


def rows(found: dict[str, Any]) -> list[Row]:
    """Return a row per mode: it must succeed, with the documented number of jobs."""
    wanted = {"per_stage": 2, "queue_ahead": 2, "shared": 1}
    shown = []
    for mode, it in found["modes"].items():
        good = it["state"] == "success" and len(it["gpu_jobs"]) == wanted[mode] and not it["left_in_queue"]
        text = f"{it['state']} after {it['took_s']} s, {len(it['gpu_jobs'])} job(s) with GPUs"
        shown.append(
            Row(mode, f"{text}; Ray ready {it['from_sft_to_ray_s']} s after SFT's last checkpoint", good)
        )
    return shown


SECTION = Section("allocation", "allocation modes", run, rows)
