"""Upload a model to the Hub, from the cluster that stores it or from a worker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias
from airflow.sdk.exceptions import AirflowSkipException

from llm_bridge.config.loader import check_model
from llm_bridge.config.types import hub_id
from llm_bridge.diagnosis.evidence import Evidence, LogLocation
from llm_bridge.diagnosis.explain import explain
from llm_bridge.exceptions import ConfigError
from llm_bridge.monitoring.log_relay import LAST_LINES
from llm_bridge.operators.base import task_directory
from llm_bridge.operators.exceptions import HubUploadEvent, HubUploadFailed, HubUploadPermanentError, fail
from llm_bridge.operators.slurm import JobSource, SlurmSubmitOperator
from llm_bridge.remote import attempt_dir, connections, node_archive
from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.remote.shared_transport import run_in_task
from llm_bridge.slurm.spec import SlurmJob
from llm_bridge.task_state import TaskState

if TYPE_CHECKING:
    from airflow.sdk import Context

# Every upload adds an event of the asset hf://OWNER/NAME through this alias: the repository may be known only at run
# time.
MODELS = AssetAlias("llm-bridge-models")

# XCom of an upload task that skipped itself: why the model is not published.
NOT_PUBLISHED_XCOM = "not_published"

# remote/node/hub/upload.py: bad input, token refused.
FINAL_EXIT_CODES = frozenset({2, 3})


def upload_settings(model_dir: str | None, repo_id: str | None, private: bool) -> dict[str, Any]:
    """Return the settings of ``remote/node/hub/upload.py``; a job's working directory is its attempt directory.

    Raises:
        ConfigError: The Hub does not allow ``repo_id``.
    """
    try:
        hub_id(repo_id or "")
    except ValueError as error:
        raise ConfigError(f"repo_id={repo_id!r} {error}") from None
    return {"model_dir": model_dir, "repo_id": repo_id, "private": private, "result": attempt_dir.RESULT}


def model_asset(repo_id: str) -> Asset:
    """Return the Airflow asset of a model on the Hub, for the ``schedule`` of a DAG that uses new models.

    Args:
        repo_id: ``OWNER/NAME``.
    """
    return Asset(f"hf://{hub_id(repo_id)}")


def add_asset_event(context: Context, result: dict[str, Any]) -> None:
    """Add one event of the model's asset to the task: its extra has the revision, the tags and the score, if any.

    A pull request adds none: the model is not published until a person merges it.

    Args:
        context: The task's context.
        result: Result of the upload.
    """
    if result.get("pull_request"):
        return
    extra: dict[str, Any] = {
        key: result[key] for key in ("repo_id", "revision", "url", "score", "tags") if key in result
    }
    events = context["outlet_events"][MODELS]
    if not events.asset_alias_events:  # execute may call execute_complete itself
        events.add(model_asset(result["repo_id"]), extra=extra)


class HubUploadOperator(SlurmSubmitOperator):
    """Upload a model folder to the Hub: as a Slurm job on the cluster that stores it, or from this worker.

    After the upload the uploader compares its result with the Hub's own listing. If the Hub has all files already it
    makes no new commit. Each upload adds an event of the asset ``hf://OWNER/NAME`` (:func:`model_asset`). With
    ``better_than_published`` in the settings of ``job``, a model that is not better is not published: the task is
    skipped, and its XCom ``not_published`` says why.

    Args:
        cluster: Name of the cluster file of the cluster that stores ``model_dir``; None if the worker itself can read
            it. (templated)
        model_dir: Absolute path of the folder. (templated)
        repo_id: ``OWNER/NAME``. (templated)
        hub_conn_id: Airflow connection whose password is the token. On a worker its host, if set, is the endpoint; on a
            cluster the variable ``HF_ENDPOINT`` of the cluster file is.
        private: Visibility of a repository that has to be created.
        job: Instead of all these, a job specification with ``template="upload"``, as for ``SlurmSubmitOperator``.

    Returns:
        On a cluster the output of ``SlurmSubmitOperator``, on a worker only its ``result``:
        ``{"repo_id", "revision", "url", "files": [{"path", "size", "sha256"}]}``.

    Raises:
        ConfigError: The Hub does not allow ``repo_id``, there is no such connection, or its password cannot be a token.
        HubUploadFailed: An upload on a worker failed; ``.diagnosis`` is the cause, which ``retry_policy`` uses.
        HubUploadPermanentError: As before, for bad input or a refused token; no retry follows.
    """

    template_fields: Sequence[str] = (*SlurmSubmitOperator.template_fields, "model_dir", "repo_id")
    ui_color = "#ffe6b3"
    final_exit_codes = FINAL_EXIT_CODES

    def __init__(
        self,
        *,
        cluster: str | None = None,
        model_dir: str | None = None,
        repo_id: str | None = None,
        hub_conn_id: str | None = None,
        private: bool = True,
        job: JobSource | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["outlets"] = [MODELS, *(kwargs.get("outlets") or ())]
        super().__init__(job=job or self._upload_job, **kwargs)
        if job is None and not (model_dir and repo_id and hub_conn_id):
            raise ValueError(f"task {self.task_id!r}: give either job, or model_dir, repo_id and hub_conn_id")
        self.runs_on_worker = job is None and cluster is None
        self.cluster = cluster
        self.model_dir = model_dir
        self.repo_id = repo_id
        self.hub_conn_id = hub_conn_id
        self.private = private

    def execute(self, context: Context) -> Any:
        """Upload from this worker, or submit the upload job and wait for it."""
        if self.runs_on_worker:
            result = self._upload_from_worker(context)
            add_asset_event(context, result)
            return result
        return self._with_asset_event(context, super().execute(context))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return the job's output, and add an event of the model's asset."""
        return self._with_asset_event(context, super().execute_complete(context, event))

    def _with_asset_event(self, context: Context, output: Any) -> Any:
        if isinstance(output, dict) and isinstance(output.get("result"), dict):
            if reason := output["result"].get("not_published"):
                context["ti"].xcom_push(key=NOT_PUBLISHED_XCOM, value=reason)
                raise AirflowSkipException(reason)
            add_asset_event(context, output["result"])
        return output

    def _upload_job(self, context: Context) -> SlurmJob:
        assert self.cluster and self.hub_conn_id
        values = {
            "cluster": self.cluster,
            "template": "upload",
            "settings": upload_settings(self.model_dir, self.repo_id, self.private),
            "directory": task_directory(self.cluster, context),
            "secrets": {"hub": self.hub_conn_id},
        }
        return check_model(SlurmJob, values, f"task {self.task_id!r}")

    def _upload_from_worker(self, context: Context) -> dict[str, Any]:
        """Run the uploader as a child process: the worker never imports huggingface_hub, no argv holds the token."""
        assert self.hub_conn_id
        environment = {**os.environ, "HF_TOKEN": connections.secret(self.hub_conn_id)}
        if endpoint := connections.connection(self.hub_conn_id).host:
            environment["HF_ENDPOINT"] = endpoint
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            result = folder / attempt_dir.RESULT
            values = upload_settings(self.model_dir, self.repo_id, self.private) | {"result": str(result)}
            attempt_dir.write_json(str(folder / attempt_dir.SETTINGS), values)
            program = folder / attempt_dir.NODE_ARCHIVE
            program.write_bytes(node_archive.build())
            argv = [sys.executable, str(program), "upload", "--settings", str(folder / attempt_dir.SETTINGS)]
            code, lines = self._run_and_log(argv, environment)
            if code:
                reason = attempt_dir.read_shape(Reason, str(folder), attempt_dir.REASON)
                error = self._failed(context, code, lines, reason)
                fail(error, permanent=code in FINAL_EXIT_CODES, policy=self.retry_policy)
            uploaded: dict[str, Any] = attempt_dir.read_json(str(result))
            return uploaded

    def _run_and_log(self, argv: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
        """Run a program, log each of its lines at once, and return its exit code and the lines."""
        lines = []
        with subprocess.Popen(
            argv,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            assert process.stdout
            try:
                for line in process.stdout:
                    lines.append(line.rstrip("\n"))
                    self.log.info("%s", lines[-1])
            except (
                BaseException
            ):  # Airflow's timeout, or the task is cleared: Popen would wait for the upload
                process.kill()
                raise
        return process.returncode, lines

    def _failed(
        self, context: Context, code: int, lines: list[str], reason: Reason | None
    ) -> HubUploadFailed:
        """Return the error, diagnosed from the uploader's own reason, else from its output."""
        final, last = code in FINAL_EXIT_CODES, tuple(lines[-LAST_LINES:])
        partial = Evidence(reason=reason, last_line=last[-1] if last else f"it ended with exit code {code}")
        task = TaskState.from_context(context)
        nowhere = LogLocation(cluster="", job_id="", directory="", logs=())
        name = f"upload {task.try_number}"
        delay = self.delay_before_retry()
        report = run_in_task(
            explain(task, partial, nowhere, name=name, retry_delay=delay, final=final, last_lines=lines)
        )
        event = HubUploadEvent(
            model_dir=str(self.model_dir),
            repo_id=str(self.repo_id),
            host=socket.gethostname(),
            exit_code=code,
            last_lines=last,
        )
        error = HubUploadPermanentError if final else HubUploadFailed
        return error(event, self.push_diagnosis(context, report))
