"""Rows of the report: run each case once and describe it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from benchmarks.failures_report import alerts
from benchmarks.failures_report.alerts import Alert, alerts_since
from benchmarks.failures_report.case import DAG, RETRIES, RUN, Case, Site
from benchmarks.failures_report.follow import follow
from llm_bridge.diagnosis.classes import Action
from llm_bridge.notifications.callbacks import for_tasks
from testing import causes
from testing.local_cluster import LocalCluster
from testing.sinks import mail_server, web_server
from testing.task_context import Meddle, Task, events_at_once

SITE, SSH_PORT = "failures", 22433
ALERTS = {
    "email": {"conn_id": "mail", "sender": "llm-bridge@example.org", "to": ["team@example.org"]},
    "http": {"conn_id": "hook"},
    "retries": True,
}
# Start of a diagnosis' next action (diagnosis/retry.py).
ACTIONS = {
    "no retry": Action.STOP,
    "resumes from": Action.CONTINUE,
    "starts again from its beginning within": Action.CONTINUE,
    "retries at once": Action.ELSEWHERE,
    "retries in": Action.LATER,
}
# Timeouts that a large site needs and this machine does not.
WAIT_SECONDS = {
    "llm_bridge.triggers.ray_from_files.CAUSE_SECONDS": 3.0,
    "llm_bridge.slurm.poller.LOST_TIMEOUT_SECONDS": 12.0,
    "llm_bridge.slurm.poller.UNLISTED_TIMEOUT_SECONDS": 12.0,
    "llm_bridge.slurm.poller.REQUEUE_GRACE_SECONDS": 12.0,
    # Until a triggerer's log file has the last line; there is none here.
    "llm_bridge.monitoring.log_relay.LOG_WRITE_TIMEOUT_SECONDS": 0.0,
}


@contextmanager
def site() -> Iterator[Site]:
    """Run a cluster for the report, and the receivers of its alerts, in the context."""
    cluster = LocalCluster(SITE, ssh_port=SSH_PORT)
    cluster.down(wipe=True)
    with (
        tempfile.TemporaryDirectory(prefix="llm-bridge-failures-") as folder,
        mail_server() as mails,
        web_server() as posts,
    ):
        try:
            cluster.up()
            site = Site(cluster, Path(folder), mails, posts)
            (site.include / "alerts.yaml").write_text(yaml.safe_dump(ALERTS))
            os.environ |= {
                **site.environment,
                "AIRFLOW_CONN_MAIL": mails.connection,
                "AIRFLOW_CONN_HOOK": f"http://127.0.0.1:{posts.port}",
                "NO_PROXY": "127.0.0.1",
            }
            # The mail server logs every received line.
            logging.getLogger("mail.log").setLevel(logging.WARNING)
            causes.small_disk(cluster)
            yield site
        finally:
            cluster.down(wipe=True)


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Shorten the timeouts that this machine does not need, in the context."""
    with events_at_once(), ExitStack() as patched:
        for name, seconds in WAIT_SECONDS.items():
            patched.enter_context(patch(name, seconds))
        yield


def row(case: Case, site: Site) -> dict[str, Any]:
    """Run a case and return its row of the report."""
    began = time.monotonic()
    before = len(site.mails), len(site.posts)
    task = Task(case.name, dag_id=DAG, run_id=RUN, retries=RETRIES, known=True)
    try:
        ended = _play(case, site, task)
    except Exception as error:  # the other cases run nevertheless
        traceback.print_exc(file=sys.stdout)
        message, _, _ = f"{type(error).__name__}: {error}".partition("\n")
        ended = f"could not be run: {message}"
    received = alerts_since(site, *before)
    diagnoses = [value for key, value in task.pushed if key == "diagnosis"]
    found = diagnoses[0] if diagnoses else _of_the_alert(received)
    described = {
        "case": case.name,
        "caused": case.caused,
        "how": case.how,
        "expected": case.kind,
        "found": found["kind"],
        "evidence": found["evidence"],
        "source": found.get("source", ""),
        "node": found.get("node"),
        "action": found["next_action"],
        "ended": ended,
        "attempts": _attempts(task),
        "tries": task.ti.try_number,
        "steps_lost": _lost(case, site, found.get("step")),
        "alerts": [one.as_dict() for one in received],
        "took_s": round(time.monotonic() - began, 1),
    }
    described["wrong"] = list(_wrong(case, described, received))
    return described | {"as_expected": not described["wrong"]}


def _play(case: Case, site: Site, task: Task) -> str:
    """Run a case, clean up, and return the task's end."""
    try:
        if case.prepare:
            case.prepare(site)
        operator = case.operator(site, {"task_id": case.name, "retries": RETRIES, **for_tasks()})
        return follow(operator, task, _meddling(case, site))
    finally:
        if case.mend:
            case.mend(site)
        site.end_jobs()


def _meddling(case: Case, site: Site) -> Meddle | None:
    if not case.meddle:
        return None
    # Only with the first job.
    return lambda number, trigger: case.meddle(site, trigger) if number == 1 else None  # type: ignore[misc]


def _attempts(task: Task) -> int:
    """Return the number of the task's jobs: Ray jobs if it waits for those, without their clusters."""
    jobs = {
        key: {str(value) for name, value in task.pushed if name == key} for key in ("ray_job", "slurm_job")
    }
    return len(jobs["ray_job"] or jobs["slurm_job"])


def _of_the_alert(received: list[Alert]) -> dict[str, Any]:
    """Return the facts of the hang alert in place of a diagnosis, for a job that hung and continued."""
    hang = next((one for one in received if one.occasion == "hang"), None)
    if hang is None:
        return {"kind": "nothing", "evidence": "", "next_action": ""}
    facts = hang.facts
    return {
        "kind": "hang",
        "evidence": facts["What"],
        "node": facts.get("Node"),
        "next_action": facts["Next"],
    }


def _wrong(case: Case, row: dict[str, Any], received: list[Alert]) -> Iterator[str]:
    """Yield a sentence for each difference from the expected result."""
    if row["found"] != case.kind:
        yield f"found {row['found']} instead of {case.kind}"
    if case.evidence not in row["evidence"]:
        yield f"the evidence lacks {case.evidence!r}"
    if case.node and not row["node"]:
        yield "no node is named"
    action = next((action for text, action in ACTIONS.items() if row["action"].startswith(text)), None)
    if action is not case.action:
        yield f"the action is not {case.action.name if case.action else 'to continue'}"
    if row["ended"] != case.ends:
        yield f"the task {row['ended']} instead of {case.ends}"
    yield from alerts.wrong(case, received)


def _lost(case: Case, site: Site, saved: int | None) -> int | None:
    """Return the number of steps that are trained again; None if the case is no training.

    These are the steps between the newest checkpoint and the last step that the first attempt printed.
    """
    if not case.log:
        return None
    log = Path(site.stage(case.name), case.log)
    if not log.exists():  # the job did not start
        return None
    steps = [
        int(line.split(":")[1].split(" ")[0])
        for line in log.read_text().splitlines()
        if line.startswith("step:")
    ]
    return max(0, max(steps, default=0) - (saved or 0))
