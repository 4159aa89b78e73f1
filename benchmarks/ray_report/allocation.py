"""The three ways in which PPO comes by its nodes, each through the whole pipeline of the demo.

What a failed SFT does in each is in tests/operators/test_allocation.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from benchmarks.ray_report.support import Row, Section
from demo.run import bring_up
from demo.services import CLUSTER, DAG, RECIPE, RUN_PREFIX, Demo
from llm_bridge.config.recipe import Allocation
from local_cluster import LocalCluster

LIMIT_SECONDS = 1800


def run(cluster: LocalCluster) -> dict[str, Any]:
    """Brings the demo up, and down again; ``cluster`` is left alone."""
    demo = Demo()
    try:
        bring_up(demo, Console(quiet=True))
        api = demo.airflow.api()
        api.wait_for_dag(DAG)
        api.unpause(DAG)
        return {"modes": {mode: _one(demo, mode) for mode in get_args(Allocation)}}
    finally:
        demo.stop()


def _one(demo: Demo, mode: str) -> dict[str, Any]:
    api, name = demo.airflow.api(), f"{RUN_PREFIX}{mode}-{time.time():.0f}"
    began = time.monotonic()
    api.trigger(DAG, {"recipe": RECIPE, "cluster": CLUSTER, "allocation": mode}, name)
    state = api.wait(DAG, name, LIMIT_SECONDS)
    took = time.monotonic() - began
    jobs = [api.xcom(DAG, name, task, "slurm_job") for task in ("sft.train", "ppo.ray_up")]
    up = api.xcom(DAG, name, "ppo.ray_up") or {}
    trained = Path(
        api.xcom(DAG, name, "check")["directory"], "sft/checkpoints/latest_checkpointed_iteration.txt"
    )
    summary = api.xcom(DAG, name, "summary", "summary") or {}
    left = demo.cluster.run("login", ["squeue", "-h", "-o", "%i %j"], user="svc").stdout.split("\n")
    return {
        "state": state,
        "took_s": round(took, 1),
        "stages": {row["name"]: row["state"] for row in summary.get("stages", [])},
        "gpu_jobs": sorted({job["job_id"] for job in jobs if job}),
        "directory_of_ray": up.get("directory"),
        "from_sft_to_ray_s": round(up["result"]["phases"]["verified"] - trained.stat().st_mtime, 1)
        if up
        else None,
        "left_in_queue": [row for row in left if row],
    }


def rows(found: dict[str, Any]) -> list[Row]:
    """Every mode ends well, with the jobs that it promises."""
    wanted = {"per_stage": 2, "queue_ahead": 2, "shared": 1}
    told = []
    for mode, it in found["modes"].items():
        good = it["state"] == "success" and len(it["gpu_jobs"]) == wanted[mode] and not it["left_in_queue"]
        text = f"{it['state']} after {it['took_s']} s, {len(it['gpu_jobs'])} job(s) with GPUs"
        told.append(
            Row(mode, f"{text}; Ray ready {it['from_sft_to_ray_s']} s after SFT's last checkpoint", good)
        )
    return told


SECTION = Section("allocation", "allocation modes", run, rows)
