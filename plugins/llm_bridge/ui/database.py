"""Read what the run page shows from Airflow's database, in the API server."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from airflow.models.dagrun import DagRun
from airflow.models.task_state_store import TaskStateStoreModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from sqlalchemy import and_, exists, or_, select
from sqlalchemy.orm import Session

from llm_bridge.monitoring import history
from llm_bridge.monitoring.run_record import LIVE_XCOM
from llm_bridge.monitoring.wandb_run import XCOM_KEY as WANDB

# XComs that are read: what the pipeline's tasks return, and what all of llm-bridge's tasks push.
RETURNED = "return_value"
RAY_DASHBOARD = "ray_dashboard"
DIAGNOSIS = "diagnosis"
SUMMARY = "summary"
KEYS = (RETURNED, LIVE_XCOM, WANDB, RAY_DASHBOARD, DIAGNOSIS, SUMMARY)


@dataclass(frozen=True)
class TaskRecord:
    """One task instance.

    Attributes:
        task_id: The task; of a mapped one with its index, ``task [2]``.
        state: Its state in Airflow.
        try_number: Number of its try.
        max_tries: Number of tries that it has.
        started: Start of the try, in epoch seconds; None before it.
        ended: Its end.
        xcoms: Key -> value of those in KEYS.
        stored: Key -> value of what the run page keeps in its state store.
    """

    task_id: str
    state: str | None
    try_number: int
    max_tries: int
    started: float | None
    ended: float | None
    xcoms: dict[str, Any] = field(default_factory=dict)
    stored: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecords:
    """One run, and its task instances by name; times are epoch seconds."""

    dag_id: str
    run_id: str
    state: str
    queued: float | None
    started: float | None
    ended: float | None
    conf: dict[str, Any]
    tasks: dict[str, TaskRecord]


def runs(session: Session, dag_ids: Collection[str], limit: int) -> list[RunRecords]:
    """Return the newest runs of some DAGs in which llm-bridge has recorded anything, without their tasks.

    Args:
        session: Session of Airflow's database.
        dag_ids: The DAGs.
        limit: Maximum number of runs.
    """
    if not dag_ids:
        return []
    recorded = exists().where(
        and_(TaskStateStoreModel.dag_run_id == DagRun.id, TaskStateStoreModel.key == history.STORE_KEY)
    )
    rows = session.scalars(
        select(DagRun).where(DagRun.dag_id.in_(dag_ids), recorded).order_by(DagRun.id.desc()).limit(limit)
    )
    return [_run(row) for row in rows]


def records(session: Session, dag_id: str, run_id: str, *, with_curves: bool) -> RunRecords | None:
    """Return one run with its tasks, or None where there is no such run.

    Args:
        session: Session of Airflow's database.
        dag_id: The DAG.
        run_id: The run.
        with_curves: Also read the stored curves of attempts that have ended.
    """
    row = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    if row is None:
        return None
    found = _run(row)
    # Columns, and not objects: a task instance would load its DAG's serialized form.
    columns = (
        TaskInstance.task_id,
        TaskInstance.map_index,
        TaskInstance.state,
        TaskInstance.try_number,
        TaskInstance.max_tries,
        TaskInstance.start_date,
        TaskInstance.end_date,
    )
    of_run = and_(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
    for task_id, index, state, try_number, max_tries, started, ended in session.execute(
        select(*columns).where(of_run)
    ):
        name = _name(task_id, index)
        found.tasks[name] = TaskRecord(
            name, state and str(state), try_number, max_tries + 1, _epoch(started), _epoch(ended)
        )
    for task_id, index, key, value in session.execute(
        select(XComModel.task_id, XComModel.map_index, XComModel.key, XComModel.value).where(
            XComModel.dag_id == dag_id, XComModel.run_id == run_id, XComModel.key.in_(KEYS)
        )
    ):
        if task := found.tasks.get(_name(task_id, index)):
            task.xcoms[key] = _value(value)
    store = TaskStateStoreModel
    own = store.key == history.STORE_KEY
    if with_curves:
        own = or_(own, store.key.startswith(f"{history.CURVES_PREFIX}.", autoescape=True))
    for task_id, index, key, value in session.execute(
        select(store.task_id, store.map_index, store.key, store.value).where(store.dag_run_id == row.id, own)
    ):
        if task := found.tasks.get(_name(task_id, index)):
            task.stored[key] = _value(value)
    return found


def run_only(session: Session, dag_id: str, run_id: str) -> RunRecords | None:
    """Return one run without its tasks, or None where there is no such run.

    Args:
        session: Session of Airflow's database.
        dag_id: The DAG.
        run_id: The run.
    """
    row = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    return None if row is None else _run(row)


def _run(row: DagRun) -> RunRecords:
    return RunRecords(
        dag_id=row.dag_id,
        run_id=row.run_id,
        state=str(row.state),
        queued=_epoch(row.queued_at),
        started=_epoch(row.start_date),
        ended=_epoch(row.end_date),
        conf=dict(row.conf or {}),
        tasks={},
    )


def _name(task_id: str, map_index: int) -> str:
    return task_id if map_index < 0 else f"{task_id} [{map_index}]"


def _epoch(time: datetime | None) -> float | None:
    return time.timestamp() if time else None


def _value(value: Any) -> Any:
    """Return a value as its task has stored it: JSON, which some databases return as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
