"""Routes of the run page: all but its static files need a login and, for a run, the permission to read its DAG."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from llm_bridge.ui import database, view

STATIC = Path(__file__).parent / "static"
# Nothing is loaded from elsewhere, and no text of a user or a model can become a script.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MAX_RUNS = 100
# As Airflow's own list of runs, which then leaves out the DAGs that the user may not read.
READ_RUNS = requires_access_dag(method="GET", access_entity=DagAccessEntity.RUN)
# What the page shows of a run: each is a permission of its own in Airflow.
READ = [
    Depends(requires_access_dag(method="GET")),
    *(
        Depends(requires_access_dag(method="GET", access_entity=entity))
        for entity in (DagAccessEntity.RUN, DagAccessEntity.TASK_INSTANCE, DagAccessEntity.XCOM)
    ),
]
Points = Annotated[int, Query(ge=10, le=2000)]


def create_app() -> FastAPI:
    """Return the application, to be mounted in Airflow's API server."""
    app = FastAPI(title="llm-bridge", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(GZipMiddleware, minimum_size=2000)
    app.middleware("http")(_with_headers)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.get("/run")(page)
    app.get("/runs")(page)
    app.get("/api/runs", dependencies=[Depends(READ_RUNS)])(runs)
    app.get("/api/runs/{dag_id}/{run_id}", dependencies=READ)(run)
    app.get("/api/runs/{dag_id}/{run_id}/state", dependencies=READ)(state)
    app.get("/api/runs/{dag_id}/{run_id}/curves", dependencies=READ)(curves)
    return app


async def _with_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    answer = await call_next(request)
    for name, value in HEADERS.items():
        if name != "Cache-Control" or "/static/" not in request.url.path:
            answer.headers[name] = value
    return answer


def page(user: GetUserDep) -> FileResponse:
    """Return the page, which has no data itself: its script reads them from the routes below ``/api``."""
    return FileResponse(STATIC / "index.html", media_type="text/html")


def runs(user: GetUserDep, session: SessionDep) -> JSONResponse:
    """Return the newest runs, of the DAGs that the user may read, that have something to show."""
    allowed = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
    return JSONResponse({"runs": [view.listed(found) for found in database.runs(session, allowed, MAX_RUNS)]})


def run(dag_id: str, run_id: str, session: SessionDep) -> JSONResponse:
    """Return all of one run but its curves."""
    return JSONResponse(view.run(_records(session, dag_id, run_id, with_curves=False)))


def state(dag_id: str, run_id: str, session: SessionDep) -> JSONResponse:
    """Return what changes when a run that has ended is cleared, by one query of one row."""
    found = _found(database.run_only(session, dag_id, run_id), dag_id, run_id)
    return JSONResponse({"state": found.state, "queued": found.queued, "ended": found.ended})


def curves(dag_id: str, run_id: str, session: SessionDep, points: Points = 600) -> JSONResponse:
    """Return the curves of all attempts of one run.

    Args:
        dag_id: The DAG.
        run_id: The run.
        session: Session of Airflow's database.
        points: Maximum number of points of one curve; the smallest and largest value of each stretch are among them.
    """
    found = _records(session, dag_id, run_id, with_curves=True)
    return JSONResponse({"curves": view.curves(found, points)})


def _records(session: Any, dag_id: str, run_id: str, *, with_curves: bool) -> database.RunRecords:
    return _found(database.records(session, dag_id, run_id, with_curves=with_curves), dag_id, run_id)


def _found(found: database.RunRecords | None, dag_id: str, run_id: str) -> database.RunRecords:
    if found is None:
        raise HTTPException(404, f"DAG {dag_id!r} has no run {run_id!r}")
    return found
