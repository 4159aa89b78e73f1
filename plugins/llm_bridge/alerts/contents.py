"""What an alert says of a task's end: from the callback's context, and from the diagnosis if there is one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from llm_bridge.alerts.message import Message, Occasion, page
from llm_bridge.progress import duration

log = logging.getLogger(__name__)

NO_TRIES_LEFT = (
    "nothing by itself. Put the cause right and clear the task: it goes on from its newest checkpoint"
)
TRIED_AGAIN = "it is tried again by itself"
VERBS: dict[Occasion, str] = {
    "failure": "failed",
    "retry": "failed and is tried again",
    "hang": "hung, was ended for that and is tried again",
}
# Of a job that hung, so many last lines and as many of what its processes did.
LINES_OF_HANG = 10


def now() -> str:
    """The moment, for people."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def of_failure(context: Any, occasion: Occasion) -> Message:
    """What went wrong, where, what it cost and what happens next."""
    ti, exception = context["ti"], context.get("exception")
    found = diagnosis(context)
    said = [line.strip() for line in str(exception or "").splitlines() if line.strip()]
    what = found.get("title") or (said[0] if said else "it says nothing of why")
    event, hang = getattr(exception, "event", None) or {}, hang_of(context)
    lines = event.get("last_lines") or []
    if hang:
        lines = [*lines[-LINES_OF_HANG:], *hang["stacks"][:LINES_OF_HANG]]
    evidence = found.get("evidence") or _evidence(said, event)
    facts = [
        ("What", what),
        ("Class", found.get("kind")),
        ("Evidence", evidence if evidence != what else ""),
        ("Node", found.get("node") or (event.get("info") or {}).get("nodes") or hang.get("nodes")),
        ("Attempt", _attempt(ti, found)),
        ("GPU-hours", _gpu_hours(found)),
        ("Next", found.get("next") or (NO_TRIES_LEFT if occasion == "failure" else TRIED_AGAIN)),
        ("You can", found.get("advice")),
        ("Run", ti.run_id),
    ]
    return Message.of(
        occasion,
        f"{ti.dag_id}: {_task(ti)} {VERBS[occasion]}: {what}",
        facts,
        lines=lines,
        links=[
            ("Log", getattr(ti, "log_url", "")),
            ("Run", page(ti.dag_id, ti.run_id)),
            ("On the cluster", event.get("directory") or _directory(ti)),
        ],
    )


def of_success(context: Any, occasion: Occasion, before: str = "") -> Message:
    """What a run has made, and how long it took."""
    ti, run = context["ti"], context["dag_run"]
    summary = _pulled(ti, "summary") or {}
    model = summary.get("model") or {}
    started = getattr(run, "start_date", None)
    took = duration((datetime.now(UTC) - started).total_seconds()) if started else ""
    stages = [
        f"{row['name']} {duration(row['run_s'])}" for row in summary.get("stages", ()) if row.get("run_s")
    ]
    facts = [
        ("Before", before),
        ("Took", took),
        ("Stages", ", ".join(stages)),
        ("Model", model.get("repo_id")),
        ("Run", ti.run_id),
    ]
    verb = "succeeds again" if occasion == "recovery" else "succeeded"
    links = [("Run", page(ti.dag_id, ti.run_id)), ("Model", model.get("url"))]
    return Message.of(occasion, f"{ti.dag_id}: {verb}", facts, links=links)


def diagnosis(context: Any) -> Mapping[str, Any]:
    """``llm_bridge.failures.diagnosis.Diagnosis`` of the failure as a dict; empty when there is none.

    The exception carries it. The XCom that the task leaves is asked where there is no exception (the worker has died,
    and Airflow calls back in the DAG processor): beside one without a diagnosis it may be that of an earlier job.
    """
    exception = context.get("exception")
    found = getattr(exception, "diagnosis", None)
    if found is not None:
        return found if isinstance(found, Mapping) else found.as_dict()
    if isinstance(exception, BaseException):
        return {}
    left = _pulled(context["ti"], "diagnosis")
    return left if isinstance(left, Mapping) else {}


def hang_of(context: Any) -> Mapping[str, Any]:
    """What ``HangWatch`` found of the job that failed, if it stood still at its end; else empty."""
    event = getattr(context.get("exception"), "event", None) or {}
    return event.get("hang") or {}


def ended_for_hanging(context: Any) -> bool:
    """Whether llm-bridge ended the job that failed because it hung; reason.json says so for another triggerer."""
    event = getattr(context.get("exception"), "event", None) or {}
    return bool(hang_of(context).get("ended")) or (event.get("reason") or {}).get("kind") == "hang"


def _evidence(said: list[str], event: Mapping[str, Any]) -> str:
    """Without a diagnosis: what the job itself gave as its reason, its last line, or the message's next line."""
    if reason := (event.get("reason") or {}).get("reason"):
        return str(reason)
    if lines := event.get("last_lines"):
        return str(lines[-1])
    return "\n".join(said[1:8])


def _attempt(ti: Any, found: Mapping[str, Any]) -> str:
    attempt = found.get("attempt") or getattr(ti, "try_number", None)
    most = found.get("of") or (getattr(ti, "max_tries", None) or 0) + 1
    return f"{attempt} of {max(attempt, most)}" if attempt else ""


def _gpu_hours(found: Mapping[str, Any]) -> str:
    if found.get("gpu_hours") is None:
        return ""
    text = f"{found['gpu_hours']:.1f} spent"
    if found.get("lost_gpu_hours") is not None:
        text += f", {found['lost_gpu_hours']:.1f} lost since "
        text += f"the checkpoint of step {found['step']}" if found.get("step") else "the beginning"
    return text


def _task(ti: Any) -> str:
    index = getattr(ti, "map_index", -1)
    return ti.task_id if index is None or index < 0 else f"{ti.task_id}[{index}]"


def _directory(ti: Any) -> str:
    for key in ("ray_job", "slurm_job"):
        if (job := _pulled(ti, key)) and job.get("directory"):
            return str(job["directory"])
    return ""


def _pulled(ti: Any, key: str) -> Any:
    """An XCom of the task itself; None when there is none, or when it cannot be asked for."""
    try:
        return ti.xcom_pull(task_ids=ti.task_id, key=key, map_indexes=getattr(ti, "map_index", None))
    except Exception as error:  # in the DAG processor, or while the database is away: tell what is known
        log.debug("no XCom %s of %s: %s", key, ti.task_id, error)
        return None
