"""Content of an alert about a task's end: from the callback's context, and from the diagnosis if there is one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llm_bridge.exceptions import ConfigError
from llm_bridge.notifications.message import Message, Occasion, duration, page_url
from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.remote.node.evaluate import report
from llm_bridge.slurm.events import HangReport
from llm_bridge.slurm.status import JobInfo

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

NO_TRIES_LEFT = "no retry is left. Fix the cause and clear the task: it resumes from its newest checkpoint"
WRONG_SETTING = "no retry: correct it, and clear the task together with those that follow it"
RETRIED = "Airflow retries the task"
VERBS: dict[Occasion, str] = {
    "failure": "failed",
    "retry": "failed and is retried",
    "hang": "hung, was ended and is retried",
}
# Of a job that hung: its last output lines, and as many lines of its stack dump.
MAX_HANG_LINES = 10
# Lines of an exception's message, after its first, that stand in for evidence.
MAX_EVIDENCE_LINES = 7


def now() -> str:
    """Return the current time for people, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def failure_message(context: Context, occasion: Occasion) -> Message:
    """Return an alert about a failed try: what failed, where, what it cost and what happens next.

    Args:
        context: Airflow's, of the failure callback.
        occasion: ``failure``, ``retry`` or ``hang``.
    """
    ti: Any = context["ti"]
    exception = context.get("exception")
    found = diagnosis(context)
    error_lines = [line.strip() for line in str(exception or "").splitlines() if line.strip()]
    what = found.get("title") or (error_lines[0] if error_lines else "no error message")
    event, hang = getattr(exception, "event", None), hang_report(context)
    lines = list(getattr(event, "last_lines", ()))
    if hang:
        lines = [*lines[-MAX_HANG_LINES:], *hang.stacks[:MAX_HANG_LINES]]
    evidence = found.get("evidence") or _evidence(error_lines, event)
    facts = [
        ("What", what),
        ("Class", found.get("kind")),
        ("Evidence", evidence if evidence != what else ""),
        ("Node", found.get("node") or _nodes(event, hang)),
        ("Try", _try_number(ti, found)),
        ("GPU-hours", _gpu_hours(found)),
        ("Next", found.get("next_action") or (_no_retry(exception) if occasion == "failure" else RETRIED)),
        ("What to do", found.get("advice")),
        ("Run", ti.run_id),
    ]
    return Message.build(
        occasion,
        f"{ti.dag_id}: {_task(ti)} {VERBS[occasion]}: {what}",
        facts,
        lines=lines,
        links=[
            ("Log", getattr(ti, "log_url", "")),
            ("Run", page_url(ti.dag_id, ti.run_id)),
            ("On the cluster", getattr(event, "directory", None) or _directory(ti)),
        ],
    )


def success_message(context: Context, occasion: Occasion, recovered_from: str = "") -> Message:
    """Return an alert about a successful run: the model it made, and the time it took.

    Args:
        context: Airflow's, of the last task's success callback.
        occasion: ``success`` or ``recovery``.
        recovered_from: The failure before this success; empty for none.
    """
    ti: Any = context["ti"]
    summary = _pulled(ti, "summary") or {}
    model = summary.get("model") or {}
    started = getattr(context["dag_run"], "start_date", None)
    took = duration((datetime.now(UTC) - started).total_seconds()) if started else ""
    stages = [
        f"{row['name']} {duration(row['run_s'])}" for row in summary.get("stages", ()) if row.get("run_s")
    ]
    since = summary.get("unchanged_since")
    facts = [
        ("Recovered from", recovered_from),
        ("Duration", took),
        ("Stages", ", ".join(stages)),
        ("Score", _scores(summary)),
        ("Model", model.get("repo_id") or summary.get("refused")),
        ("Not trained", f"nothing has changed since run {since}" if since else ""),
        ("Run", ti.run_id),
    ]
    verb = "succeeded after a failure" if occasion == "recovery" else "succeeded"
    if since:
        verb += ", nothing to train"
    elif summary.get("refused"):
        verb += ", not published"
    links = [("Run", page_url(ti.dag_id, ti.run_id)), ("Model", model.get("url"))]
    return Message.build(occasion, f"{ti.dag_id}: {verb}", facts, links=links)


def _scores(summary: Mapping[str, Any]) -> str:
    """Return the scores of a run's models, each beside that of the run before it where both are comparable."""
    found = summary.get("evaluation")
    if not found:
        return ""
    before = summary.get("previous") or {}
    same = bool(before) and all(before.get(key) == value for key, value in report.comparable(found).items())
    parts = []
    for name, model in found["models"].items():
        text = f"{name} {model['score']:.4f}"
        if same and name in before["scores"]:
            text += f" ({before['scores'][name]:.4f} in {before['run_id']})"
        parts.append(text)
    return f"{found['metric']}: {', '.join(parts)}"


def diagnosis(context: Context) -> Mapping[str, Any]:
    """Return the failure's ``llm_bridge.diagnosis.report.Diagnosis`` as a dict; empty when there is none.

    The exception carries it. The task's XCom is read only where there is no exception (the worker died, and Airflow
    runs the callback in the DAG processor): beside an exception without a diagnosis, the XCom may be an earlier job's.
    """
    exception = context.get("exception")
    found = getattr(exception, "diagnosis", None)
    if found is not None:
        return found if isinstance(found, Mapping) else found.as_dict()
    if isinstance(exception, BaseException):
        return {}
    left = _pulled(context["ti"], "diagnosis")
    return left if isinstance(left, Mapping) else {}


def hang_report(context: Context) -> HangReport | None:
    """Return the hang monitor's report on the job that failed; None if the job was not silent at its end."""
    return getattr(getattr(context.get("exception"), "event", None), "hang", None)


def ended_for_hang(context: Context) -> bool:
    """Return whether llm-bridge ended the job because it hung; REASON records it when another triggerer did so."""
    hang = hang_report(context)
    reason = _reason(getattr(context.get("exception"), "event", None))
    return bool(hang and hang.ended) or bool(reason and reason.kind == "hang")


def _reason(event: Any) -> Reason | None:
    return getattr(event, "reason", None)


def _nodes(event: Any, hang: HangReport | None) -> str:
    info: JobInfo | None = getattr(event, "info", None)
    return (info.nodes if info else "") or (hang.nodes if hang else "")


def _evidence(error_lines: list[str], event: Any) -> str:
    """Return a substitute for a diagnosis: the job's own reason, its last line, or the message's next lines."""
    reason = _reason(event)
    if reason and reason.reason:
        return reason.reason
    if lines := getattr(event, "last_lines", ()):
        return str(lines[-1])
    return "\n".join(error_lines[1 : 1 + MAX_EVIDENCE_LINES])


def _try_number(ti: Any, found: Mapping[str, Any]) -> str:
    number = found.get("try_number") or getattr(ti, "try_number", None)
    total = found.get("max_tries") or (getattr(ti, "max_tries", None) or 0) + 1
    return f"{number} of {max(number, total)}" if number else ""


def _gpu_hours(found: Mapping[str, Any]) -> str:
    if found.get("gpu_hours") is None:
        return ""
    text = f"{found['gpu_hours']:.1f} spent"
    if found.get("lost_gpu_hours") is not None:
        text += f", {found['lost_gpu_hours']:.1f} lost since "
        text += f"the checkpoint of step {found['step']}" if found.get("step") else "the start"
    return text


def _no_retry(exception: Any) -> str:
    return WRONG_SETTING if isinstance(exception, ConfigError) else NO_TRIES_LEFT


def _task(ti: Any) -> str:
    index = getattr(ti, "map_index", -1)
    return ti.task_id if index is None or index < 0 else f"{ti.task_id}[{index}]"


def _directory(ti: Any) -> str:
    for key in ("ray_job", "slurm_job"):
        if (job := _pulled(ti, key)) and job.get("directory"):
            return str(job["directory"])
    return ""


def _pulled(ti: Any, key: str) -> Any:
    """Return an XCom of the task itself; None when there is none, or when it cannot be read."""
    try:
        return ti.xcom_pull(task_ids=ti.task_id, key=key, map_indexes=getattr(ti, "map_index", None))
    except (
        Exception
    ) as error:  # in the DAG processor, or while the database is unavailable: send what is known
        log.debug("cannot read XCom %s of task %s: %s", key, ti.task_id, error)
        return None
