"""Client of the part of Airflow's REST API that runs need."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote

import httpx
from tenacity import Retrying, retry_if_result, stop_after_attempt, wait_random

ENDED = {"success", "failed"}


class ApiError(RuntimeError):
    """Airflow refused a request or did not answer; the message has the request and the response."""


class AirflowApi:
    """Client that logs in when needed.

    Args:
        url: URL of the API server, without a path.
        user: Name of a SimpleAuthManager user.
        password: Password of the user.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        self._token = ""
        # trust_env: requests for loopback must not go to the user's proxy.
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def health(self) -> dict[str, str]:
        """Return the state of each component, `healthy` or another text; empty if the API server is unreachable."""
        try:
            answer = self._http.get("/api/v2/monitor/health", timeout=10)
            parts = answer.json() if answer.is_success else {}
        except (httpx.HTTPError, ValueError):
            return {}
        return {name: str((part or {}).get("status")) for name, part in parts.items()}

    def accepts_login(self) -> bool:
        """Return whether the server accepts user and password: another Airflow on the same port does not."""
        try:
            self.ask("GET", "/api/v2/dags", params={"limit": 1})
        except ApiError:
            return False
        return True

    # ---- DAGs and runs

    def wait_for_dag(self, dag_id: str, timeout: float = 60) -> None:
        """Wait until Airflow has parsed the DAG.

        Raises:
            ApiError: The DAG is missing after ``timeout`` seconds, or a DAG file cannot be imported; the message then
                has the traceback.
        """
        deadline = time.monotonic() + timeout
        while True:
            dags = self.ask("GET", "/api/v2/dags", params={"dag_id_pattern": dag_id, "limit": 100})["dags"]
            if any(dag["dag_id"] == dag_id for dag in dags):
                return
            errors = self.ask("GET", "/api/v2/importErrors")["import_errors"]
            for error in errors:
                raise ApiError(f"Airflow cannot import {error['filename']}:\n{error['stack_trace']}")
            if time.monotonic() > deadline:
                raise ApiError(f"Airflow has no DAG {dag_id!r} after {timeout:.0f} s: see dag-processor.log")
            time.sleep(0.5)

    def unpause(self, dag_id: str) -> None:
        """Unpause a DAG."""
        self.ask("PATCH", f"/api/v2/dags/{_p(dag_id)}", json={"is_paused": False})

    def trigger(self, dag_id: str, conf: dict[str, Any], run_id: str) -> str:
        """Trigger a run and return its id."""
        body = {"dag_run_id": run_id, "conf": conf, "logical_date": None}
        return str(self.ask("POST", f"/api/v2/dags/{_p(dag_id)}/dagRuns", json=body)["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run: `queued`, `running`, `success` or `failed`."""
        return str(self.ask("GET", f"/api/v2/dags/{_p(dag_id)}/dagRuns/{_p(run_id)}")["state"])

    def unfinished(self, dag_id: str) -> list[str]:
        """Return the ids of the runs that are queued or running."""
        query = {"state": ["queued", "running"], "limit": 100}
        runs = self.ask("GET", f"/api/v2/dags/{_p(dag_id)}/dagRuns", params=query, absent=(404,))
        return [str(run["dag_run_id"]) for run in runs.get("dag_runs", [])]

    def fail(self, dag_id: str, run_id: str) -> None:
        """Mark a run failed: its tasks end, and cancel their jobs."""
        path = f"/api/v2/dags/{_p(dag_id)}/dagRuns/{_p(run_id)}"
        self.ask("PATCH", path, json={"state": "failed"})

    def wait(self, dag_id: str, run_id: str, timeout: float, every: float = 1) -> str:
        """Wait until a run has ended and return its state.

        Args:
            dag_id: DAG of the run.
            run_id: Id of the run.
            timeout: In seconds.
            every: Poll interval in seconds.

        Raises:
            ApiError: The run has not ended in time.
        """
        deadline = time.monotonic() + timeout
        while (state := self.run_state(dag_id, run_id)) not in ENDED:
            if time.monotonic() > deadline:
                raise ApiError(f"run {run_id} of {dag_id} is still {state} after {timeout:.0f} s")
            time.sleep(every)
        return state

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances of a run from the API: `task_id`, `state`, `try_number`, `start_date`, ..."""
        path = f"/api/v2/dags/{_p(dag_id)}/dagRuns/{_p(run_id)}/taskInstances"
        return list(self.ask("GET", path, params={"limit": 200})["task_instances"])

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """Return an XCom of a task; None if there is none."""
        path = f"/api/v2/dags/{_p(dag_id)}/dagRuns/{_p(run_id)}/taskInstances/{_p(task_id)}/xcomEntries/{_p(key)}"
        answer = self.ask("GET", path, params={"deserialize": "true"}, absent=(404,))
        value = answer.get("value")
        if not isinstance(value, str):
            return value
        try:  # without `deserialize`, and in some versions with it, the value is JSON text
            return json.loads(value)
        except ValueError:
            return value

    # ---- HTTP

    def ask(self, method: str, path: str, absent: tuple[int, ...] = (), **more: Any) -> dict[str, Any]:
        """Send one request, after a login where that is needed; return the answer's JSON object.

        Args:
            method: HTTP method.
            path: Path of the URL.
            absent: Status codes that mean "there is none": the answer is then empty.
            **more: Further arguments of ``httpx.request``: ``json``, ``params``, ...

        Raises:
            ApiError: No answer, or a status code that reports an error.
        """
        try:
            answer = self._send(method, path, **more)
            if answer.status_code == 401:  # no token yet, or it has expired
                self._token = self._log_in()
                answer = self._send(method, path, **more)
        except httpx.HTTPError as error:
            raise ApiError(
                f"no answer from Airflow at {self.url}{path}: {error or type(error).__name__}"
            ) from error
        if answer.status_code in absent:
            return {}
        if not answer.is_success:
            raise ApiError(f"{method} {self.url}{path}: {answer.status_code} {_detail(answer)}")
        return dict(answer.json()) if answer.content else {}

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        tries = Retrying(
            # A busy SQLite answers "database is locked"; idempotent requests are retried.
            retry=retry_if_result(lambda answer: answer.status_code == 500 and method in ("GET", "PATCH")),
            wait=wait_random(1, 3),
            stop=stop_after_attempt(5),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
        return tries(self._http.request, method, path, headers=headers, **more)

    def _log_in(self) -> str:
        answer = self._http.post("/auth/token", json=self._login)
        if not answer.is_success:
            raise ApiError(f"Airflow at {self.url} refuses the login: {answer.status_code} {_detail(answer)}")
        return str(answer.json()["access_token"])


def _p(part: str) -> str:
    return quote(part, safe="")


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("detail") or answer.text)
    except (ValueError, AttributeError):
        return answer.text[:500]
