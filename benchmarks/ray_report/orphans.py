"""Sweeps of an orphaned job: the first logs it, the second cancels it.

Slurm, the login node and the operator are real; the state of the run in Airflow is simulated.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ray_report.support import Row, Section, seconds_until
from testing.local_cluster import LocalCluster
from testing.site import Site
from testing.task_context import Task

SITE = "rayreport"
KEY = "llmb-report-orphan-1"


def run(cluster: LocalCluster) -> dict[str, Any]:
    """Submit a job as an operator does, then sweep twice."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= Site(cluster, Path(folder), hub={}).environment
        # Not before: the import of Airflow reads AIRFLOW_HOME.
        from llm_bridge.operators.orphans import ReapOrphansOperator

        job_id = asyncio.run(_submit(f"{cluster.workspace}/report-orphan"))
        task = Task("reap", dag_id="report", run_id="sweep")
        task.ti.get_dagrun_state = lambda **run: "failed"
        sweeps = []
        for _ in range(2):
            began = time.monotonic()
            done = ReapOrphansOperator(task_id="reap", cluster=SITE).execute(task.context)
            mine = [what for what, ids in done.items() if job_id in ids]
            sweeps.append(
                {
                    "result": mine,
                    "took_s": round(time.monotonic() - began, 1),
                    "queued": _queued(cluster, job_id),
                }
            )
        gone = seconds_until(lambda: not _queued(cluster, job_id), 30)
    return {"sweeps": sweeps, "gone_after_the_second_s": gone}


async def _submit(stage: str) -> str:
    from llm_bridge.config.loader import load_cluster
    from llm_bridge.remote.shared_transport import connect
    from llm_bridge.slurm.client import SlurmClient
    from llm_bridge.slurm.spec import SlurmJob

    job = SlurmJob(cluster=SITE, script="#!/bin/bash\nsleep 600\n", directory=stage)
    owner = {"dag_id": "report", "run_id": "over", "task_id": "t", "map_index": -1}
    site = load_cluster(SITE)
    async with connect(site) as login:
        answer = await SlurmClient(site, login.transport).submit(
            job.resolve(site), f"{stage}/attempt-1", KEY, owner, {}
        )
    return answer.job_id


def _queued(cluster: LocalCluster, job_id: str) -> bool:
    return job_id in cluster.run("login", ["squeue", "-h", "-o", "%i"], user="svc").stdout.split()


def rows(found: dict[str, Any]) -> list[Row]:
    """Return a row per sweep."""
    first, second = found["sweeps"]
    gone = found["gone_after_the_second_s"]
    return [
        Row(
            "first sweep",
            f"{first['result']}, job still in the queue: {first['queued']}",
            first["result"] == ["seen"],
        ),
        Row("second sweep", f"{second['result']}, ended after {gone} s", second["result"] == ["cancelled"]),
    ]


SECTION = Section("orphans", "orphan sweep", run, rows)
