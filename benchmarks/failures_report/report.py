"""Play each case once and describe it: one row a case."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from benchmarks.failures_report import alerts, causes
from benchmarks.failures_report.alerts import Told, told_since
from benchmarks.failures_report.case import DAG, RETRIES, RUN, Case, Site
from benchmarks.failures_report.follow import follow
from benchmarks.stand_in import Task, describe_site
from llm_bridge.alerts.occasions import for_tasks
from llm_bridge.failures.kinds import Action
from local_cluster import LocalCluster
from tests.alerts.sinks import mail_server, web_server

SITE, SSH_PORT = "failures", 22433
ALERTS = {
    "email": {"conn_id": "mail", "sender": "llm-bridge@example.org", "to": ["team@example.org"]},
    "http": {"conn_id": "hook"},
    "retries": True,
}
# How diagnoses say what follows (failures/decision.py).
ACTIONS = {
    "stops": Action.STOP,
    "goes on": Action.CONTINUE,
    "tries again at once": Action.ELSEWHERE,
    "tries again in": Action.LATER,
}
# Patience that Airflow, or a large site, needs and this machine does not.
PATIENCE = {
    "llm_bridge.slurm.triggers.EARLIEST_EVENT_SECONDS": 0.0,
    "llm_bridge.ray.triggers.EARLIEST_EVENT_SECONDS": 0.0,
    "llm_bridge.slurm.away.EARLIEST_EVENT_SECONDS": 0.0,
    "llm_bridge.ray.away.EARLIEST_EVENT_SECONDS": 0.0,
    "llm_bridge.ray.by_files.CAUSE_SECONDS": 3.0,
    "llm_bridge.slurm.watcher.LOST_SECONDS": 12.0,
    "llm_bridge.slurm.watcher.FORGOTTEN_SECONDS": 12.0,
    # Until a triggerer's log file has the last line; there is none here.
    "llm_bridge.slurm.output.MARK_SECONDS": 0.0,
}


@contextmanager
def site() -> Iterator[Site]:
    """A cluster that is there for this alone, and those who are told."""
    cluster = LocalCluster(SITE, ssh_port=SSH_PORT)
    cluster.down(wipe=True)
    with (
        tempfile.TemporaryDirectory(prefix="llm-bridge-failures-") as folder,
        mail_server() as mails,
        web_server() as posts,
    ):
        try:
            cluster.up()
            include = describe_site(cluster, Path(folder))
            (include / "alerts.yaml").write_text(yaml.safe_dump(ALERTS))
            os.environ |= {
                "AIRFLOW_CONN_MAIL": mails.connection,
                "AIRFLOW_CONN_HOOK": f"http://127.0.0.1:{posts.port}",
                "NO_PROXY": "127.0.0.1",
            }
            logging.getLogger("mail.log").setLevel(
                logging.WARNING
            )  # the mail server's, for each line it gets
            causes.small_disk(cluster)
            yield Site(cluster, include, mails, posts)
        finally:
            cluster.down(wipe=True)


@contextmanager
def impatient() -> Iterator[None]:
    """While the patience that nobody needs here is short."""
    with ExitStack() as patched:
        for name, seconds in PATIENCE.items():
            patched.enter_context(patch(name, seconds))
        yield


def row(case: Case, site: Site) -> dict[str, Any]:
    """Play it and describe it."""
    began = time.monotonic()
    before = len(site.mails), len(site.posts)
    task = Task(case.name, dag_id=DAG, run_id=RUN, retries=RETRIES)
    try:
        ended = _play(case, site, task)
    except Exception as error:  # the other cases are worth seeing, too
        traceback.print_exc(file=sys.stdout)
        said, _, _ = f"{type(error).__name__}: {error}".partition("\n")
        ended = f"could not be played: {said}"
    told = told_since(site, *before)
    diagnoses = [value for key, value in task.pushed if key == "diagnosis"]
    found = diagnoses[0] if diagnoses else _of_the_alert(told)
    described = {
        "case": case.name,
        "caused": case.caused,
        "how": case.how,
        "expected": case.kind,
        "found": found["kind"],
        "evidence": found["evidence"],
        "source": found.get("source", ""),
        "node": found.get("node"),
        "action": found["next"],
        "ended": ended,
        "attempts": _attempts(task),
        "tries": task.ti.try_number,
        "steps_lost": _lost(case, site, found.get("step")),
        "alerts": [one.as_dict() for one in told],
        "took_s": round(time.monotonic() - began, 1),
    }
    described["wrong"] = list(_wrong(case, described, told))
    return described | {"as_expected": not described["wrong"]}


def _play(case: Case, site: Site, task: Task) -> str:
    """How the task ended; nothing of the case is left."""
    try:
        if case.prepare:
            case.prepare(site)
        operator = case.operator(site, {"task_id": case.name, "retries": RETRIES, **for_tasks()})
        return follow(operator, task, _meddling(case, site))
    finally:
        if case.mend:
            case.mend(site)
        site.end_jobs()


def _meddling(case: Case, site: Site) -> Callable[[Any], None] | None:
    return (lambda trigger: case.meddle(site, trigger)) if case.meddle else None  # type: ignore[misc]


def _attempts(task: Task) -> int:
    """Jobs that the task had: Ray jobs where it waits for those, whatever clusters they needed."""
    jobs = {
        key: {str(value) for name, value in task.pushed if name == key} for key in ("ray_job", "slurm_job")
    }
    return len(jobs["ray_job"] or jobs["slurm_job"])


def _of_the_alert(told: list[Told]) -> dict[str, Any]:
    """What takes a diagnosis' place where a job hung and went on: the alert that told it."""
    hang = next((one for one in told if one.occasion == "hang"), None)
    if hang is None:
        return {"kind": "nothing", "evidence": "", "next": ""}
    facts = hang.facts
    return {"kind": "hang", "evidence": facts["What"], "node": facts.get("Node"), "next": facts["Next"]}


def _wrong(case: Case, row: dict[str, Any], told: list[Told]) -> Iterator[str]:
    """What is not as expected, a sentence each."""
    if row["found"] != case.kind:
        yield f"found {row['found']} instead of {case.kind}"
    if case.evidence not in row["evidence"]:
        yield f"the evidence lacks {case.evidence!r}"
    if case.node and not row["node"]:
        yield "no node is named"
    action = next((action for text, action in ACTIONS.items() if row["action"].startswith(text)), None)
    if action is not case.action:
        yield f"what follows is not {case.action.name if case.action else 'left alone'}"
    if row["ended"] != case.ends:
        yield f"the task {row['ended']} instead of {case.ends}"
    yield from alerts.wrong(case, told)


def _lost(case: Case, site: Site, saved: int | None) -> int | None:
    """Steps that were trained and are trained again, or None for what trains nothing.

    Between the newest checkpoint and the last step that the first attempt printed.
    """
    if not case.log:
        return None
    log = Path(site.stage(case.name), case.log)
    if not log.exists():  # it never came so far
        return None
    steps = [
        int(line.split(":")[1].split(" ")[0])
        for line in log.read_text().splitlines()
        if line.startswith("step:")
    ]
    return max(0, max(steps, default=0) - (saved or 0))
