"""Cause each failure once and describe it: one row a case."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from airflow.sdk.exceptions import TaskDeferred

from benchmarks.failures_report import causes
from benchmarks.failures_report.causes import CAUSES, Cause
from llm_bridge.failures.errors import SlurmJobFailed
from llm_bridge.failures.kinds import Action
from llm_bridge.slurm.operators import SlurmSubmitOperator
from local_cluster import LocalCluster

ROOT = Path(__file__).resolve().parents[2]
SITE, SSH_PORT, RUN = "failures", 22433, "report"


class Store(dict[str, Any]):
    """Stands for Airflow's ``task_state_store``, which needs a supervisor."""

    def set(self, key: str, value: Any) -> None:
        """As the real one, which takes JSON values only."""
        self[key] = json.loads(json.dumps(value))


def run(only: set[str]) -> list[dict[str, Any]]:
    """A row for each cause (or for those named), on a cluster that is there for this alone."""
    cluster = LocalCluster(SITE, ssh_port=SSH_PORT)
    cluster.down(wipe=True)
    cluster.up()
    try:
        _describe_site(cluster)
        causes.small_disk(cluster)
        return [row(cause, cluster) for cause in CAUSES if not only or cause.name in only]
    finally:
        cluster.down(wipe=True)


def _describe_site(cluster: LocalCluster) -> None:
    """include/ with a cluster file, and the connection that it names."""
    folder = Path(tempfile.mkdtemp(prefix="llm-bridge-failures-")) / "include"
    shutil.copytree(ROOT / "include", folder)
    settings = yaml.safe_load((folder / "clusters" / "local.yaml").read_text())
    settings |= {"ssh_conn_id": "slurm_failures", "workspace": str(cluster.workspace), "hub": {}}
    (folder / "clusters" / f"{SITE}.yaml").write_text(yaml.safe_dump(settings))
    extra = {"key_file": str(cluster.ssh_key), "known_hosts": str(cluster.known_hosts)}
    connection = {
        "conn_type": "ssh",
        "host": "127.0.0.1",
        "port": cluster.ssh_port,
        "login": "svc",
        "extra": extra,
    }
    os.environ |= {"LLM_BRIDGE_INCLUDE": str(folder), "AIRFLOW_CONN_SLURM_FAILURES": json.dumps(connection)}


def row(cause: Cause, cluster: LocalCluster) -> dict[str, Any]:
    """Cause it, follow it, describe it.

    ``steps_lost`` were trained and are trained again: between the newest checkpoint and the last step in the log.
    """
    xcoms: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="failures", run_id=RUN, task_id="t", map_index=-1, max_tries=2, try_number=1,
        xcom_push=lambda key, value: xcoms.__setitem__(key, value),
    )  # fmt: skip
    ti.task_id = cause.name
    context: Any = {"ti": ti, "dag_run": SimpleNamespace(clear_number=0), "task_state_store": Store()}
    operator = SlurmSubmitOperator(task_id=cause.name, job=cause.job(cluster.workspace, SITE, RUN), retries=2)
    ended = "the job ended well"
    try:
        _follow(operator, context, cause, cluster)
    except SlurmJobFailed as error:
        decision = operator.retry_policy.evaluate(error, 1, 2) if operator.retry_policy else None
        ended = f"the task {'fails' if decision and decision.action.value == 'fail' else 'is tried again'}"
    finally:
        if cause.mend:
            cause.mend(cluster)
    found = xcoms.get("diagnosis") or {}
    attempts = context["task_state_store"]["llm_bridge_attempt"]["number"]
    stops = found.get("next", "").startswith("stops")
    action = Action.STOP if stops else Action.CONTINUE if "within this try" in found.get("next", "") else None
    return {
        "cause": cause.name,
        "how": cause.how,
        "expected": cause.kind,
        "found": found.get("kind", "nothing"),
        "evidence": found.get("evidence", ""),
        "source": found.get("source", ""),
        "node": found.get("node"),
        "action": found.get("next", ""),
        "ended": ended,
        "attempts": attempts,
        "tries": ti.try_number,
        "steps_lost": _lost(cause, cluster, found.get("step")),
        "as_expected": found.get("kind") == cause.kind
        and (action is cause.action or (action is None and cause.action in (Action.LATER, Action.ELSEWHERE))),
    }


def _follow(operator: SlurmSubmitOperator, context: Any, cause: Cause, cluster: LocalCluster) -> None:
    step, number = functools.partial(operator.execute, context), 0
    while True:
        try:
            step()
            return
        except TaskDeferred as deferred:
            number += 1
            meddle = cause.meddle if number == 1 else None
            event = asyncio.run(_event(deferred.trigger, meddle, cause, cluster))
            step = functools.partial(getattr(operator, deferred.method_name), context, event)


async def _event(trigger: Any, meddle: Any, cause: Cause, cluster: LocalCluster) -> Any:
    outcome = asyncio.create_task(trigger.outcome())
    if meddle:
        await asyncio.to_thread(causes.wait_until_running, cluster, trigger.job_id)
        if cause.settings:
            await asyncio.to_thread(causes.wait_for_step, cluster.workspace, RUN, cause.name, causes.SAVED)
        await asyncio.to_thread(meddle, cluster, trigger.job_id)
    return await asyncio.wait_for(outcome, 120)


def _lost(cause: Cause, cluster: LocalCluster, saved: int | None) -> int | None:
    """Steps that the first attempt made after its newest checkpoint; None for what trains nothing."""
    if not cause.settings:
        return None
    log = cluster.workspace / RUN / cause.name / "attempt-1" / "output.log"
    steps = [
        int(line.split(":")[1].split(" ")[0])
        for line in log.read_text().splitlines()
        if line.startswith("step:")
    ]
    return max(0, max(steps, default=0) - (saved or 0))
