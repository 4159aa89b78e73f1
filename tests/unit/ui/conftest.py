"""A database with one run, and Airflow's own API server around the run page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from llm_bridge.monitoring import history
from llm_bridge.monitoring.run_record import LIVE_XCOM

DAG = "post_training"
RUN = "manual__2026-11-28T04:00:00+00:00"
STARTED = 1_795_838_400.0
# What a user or a model may write: it must arrive as text.
HOSTILE = "<img src=x onerror=alert(1)>'\"&"
DIRECTORY = "/w/post_training/run/sft/attempt-2"


def _time(after: float) -> datetime:
    return datetime.fromtimestamp(STARTED + after, UTC)


def _fill(session: Any) -> None:
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun
    from airflow.models.task_state_store import TaskStateStoreModel
    from airflow.models.xcom import XComModel
    from sqlalchemy import insert

    from airflow.models.taskinstance import TaskInstance  # isort: skip

    session.add(DagBundleModel(name="tests"))
    session.flush()
    session.add(DagModel(dag_id=DAG, bundle_name="tests", fileloc="x.py", is_paused=False))
    session.flush()
    run = DagRun(dag_id=DAG, run_id=RUN, run_type="manual", state="running", conf={"recipe": "tiny"})
    run.start_date, run.run_after = _time(0), _time(0)
    session.add(run)
    session.flush()
    # Rows without their operators: the page reads columns only.
    for task_id, state in (("check", "success"), ("prepare.run", "success"), ("sft.train", "deferred")):
        session.execute(
            insert(TaskInstance).values(
                task_id=task_id, dag_id=DAG, run_id=RUN, map_index=-1, state=state, try_number=2, max_tries=2,
                start_date=_time(10), pool="default_pool", pool_slots=1, queue="default", custom_operator_name="",
                executor_config={}, unixname="", hostname="",
            )
        )  # fmt: skip
    xcoms = {
        ("check", "return_value"): {"run_name": HOSTILE, "cluster": "c", "directory": "/w/it's here", "recipe": {
            "name": "tiny", "base_model": "o/m", "sft": {"verl": {"optim.lr": 0.1}}}},
        ("prepare.run", "return_value"): {"result": {"data": {"sft": {"report": {"rows": {"train": 9, "test": 1},
            "sample": [HOSTILE]}}}}},
        ("sft.train", LIVE_XCOM): {"directory": DIRECTORY, "state": "RUNNING", "nodes": "n[1-2]", "updated": STARTED,
            "started": STARTED + 500, "progress": {"step": 3, "total": 9, "left_seconds": 60},
            "curves": {"train/loss": {"x": [2, 3], "y": [0.5, 0.25], "stride": 1}}},
    }  # fmt: skip
    for (task_id, key), value in xcoms.items():
        session.add(
            XComModel(
                dag_run_id=run.id, dag_id=DAG, run_id=RUN, task_id=task_id, map_index=-1, key=key, value=value
            )
        )
    first = DIRECTORY.replace("-2", "-1")
    stored = {
        history.STORE_KEY: {"attempts": [
            {"directory": first, "name": "Slurm job 7", "job_id": "7", "gpus": 4, "kind": "slurm", "result": "failed",
             "submitted": STARTED, "started": STARTED + 100, "ended": STARTED + 460, "state": "NODE_FAIL",
             "curves": [f"{history.CURVES_PREFIX}.0.0"],
             "diagnosis": {"kind": "node_lost", "title": "Node lost", "evidence": HOSTILE, "lost_gpu_hours": 0.25}},
            {"directory": DIRECTORY, "name": "Slurm job 8", "job_id": "8", "gpus": 4, "kind": "slurm",
             "submitted": STARTED + 460},
        ]},
        f"{history.CURVES_PREFIX}.0.0": {"directory": first, "curves": {
            "train/loss": {"x": [1, 2], "y": [1.0, 0.9], "stride": 1}}},
    }  # fmt: skip
    for key, value in stored.items():
        session.add(
            TaskStateStoreModel(
                dag_run_id=run.id,
                dag_id=DAG,
                run_id=RUN,
                task_id="sft.train",
                key=key,
                value=json.dumps(value),
            )
        )
    session.commit()


@pytest.fixture(scope="session")
def server() -> Iterator[Any]:
    """Airflow's API server with the plugin, and a database with one run."""
    from airflow import plugins_manager
    from airflow.api_fastapi.app import create_app
    from airflow.models import import_all_models
    from airflow.models.base import Base
    from airflow.settings import Session, get_engine

    import_all_models()
    Base.metadata.create_all(get_engine())
    with Session() as session:
        _fill(session)
    plugins_manager._get_plugins.cache_clear()
    plugins_manager.get_fastapi_plugins.cache_clear()
    yield create_app(apps="core")
    with Session() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
        session.commit()


@pytest.fixture
def client(server: Any) -> Callable[[str | None], Any]:
    """Return a function that makes a client: of a role of Airflow's, "nobody" without any role, None without login."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    def make(role: str | None) -> Any:
        headers = {}
        if role:
            user = SimpleAuthManagerUser(username=role, role=None if role == "nobody" else role)
            headers["Authorization"] = f"Bearer {get_auth_manager().generate_jwt(user)}"
        return TestClient(server, headers=headers)

    return make
