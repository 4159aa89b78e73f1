"""Upload a model to the Hub, from the cluster where it lies or from a worker."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from llm_bridge.config.load import check_model, include_dir
from llm_bridge.failures.errors import HubUploadCannotSucceed, HubUploadFailed
from llm_bridge.failures.evidence import Evidence, Place
from llm_bridge.failures.handling import explain
from llm_bridge.slurm.job import SlurmJob
from llm_bridge.slurm.operators import JobSource, SlurmSubmitOperator, task_directory
from llm_bridge.slurm.output import LAST_LINES

if TYPE_CHECKING:
    from airflow.sdk import Context

# include/jobs/upload.py: bad input, token refused.
FINAL_EXIT_CODES = frozenset({2, 3})


def upload_settings(model_dir: str | None, repo_id: str | None, private: bool) -> dict[str, Any]:
    """The settings of ``include/jobs/upload.py``; a job's working directory is its attempt's directory."""
    return {"model_dir": model_dir, "repo_id": repo_id, "private": private, "result": "result.json"}


class HubUploadOperator(SlurmSubmitOperator):
    """Upload a model folder to the Hub: as a Slurm job on the cluster where it lies, or from this worker.

    The result was compared with the Hub's own listing after the upload. An upload of what is there already
    makes no new commit.

    :param cluster: cluster on which ``model_dir`` lies; None means that the worker itself can read it. (templated)
    :param model_dir: absolute path of the folder. (templated)
    :param repo_id: ``OWNER/NAME``. (templated)
    :param hub_conn_id: Airflow connection whose password is the token; on a worker its host, if set, is the
        endpoint (on a cluster that is the variable ``HF_ENDPOINT`` of the cluster file).
    :param private: visibility of a repository that has to be made.
    :param job: instead of all these, a job description with ``template="upload"``, as for ``SlurmSubmitOperator``.
    :returns: on a cluster what ``SlurmSubmitOperator`` returns, on a worker its ``result`` alone:
        ``{"repo_id", "revision", "url", "files": [{"path", "size", "sha256"}]}``.
    :raises HubUploadFailed: on a worker; with its cause (``.diagnosis``), by which ``retry_policy`` decides.
    :raises HubUploadCannotSucceed: so it did, for bad input or a refused token; no retry follows.
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
        super().__init__(job=job or self._upload_job, **kwargs)
        if job is None and not (model_dir and repo_id and hub_conn_id):
            raise ValueError(f"task {self.task_id!r}: give model_dir, repo_id and hub_conn_id, or job")
        self.here = job is None and cluster is None
        self.cluster = cluster
        self.model_dir = model_dir
        self.repo_id = repo_id
        self.hub_conn_id = hub_conn_id
        self.private = private

    def execute(self, context: Context) -> Any:
        return self._upload_from_here(context) if self.here else super().execute(context)

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

    def _upload_from_here(self, context: Context) -> dict[str, Any]:
        """Run the uploader as a child process: the worker never imports huggingface_hub, no argv holds the token."""
        assert self.hub_conn_id
        connection = BaseHook.get_connection(self.hub_conn_id)
        environment = {**os.environ, "HF_TOKEN": connection.password or ""}
        if connection.host:
            environment["HF_ENDPOINT"] = connection.host
        with tempfile.TemporaryDirectory() as folder:
            settings, result = Path(folder, "settings.json"), Path(folder, "result.json")
            values = upload_settings(self.model_dir, self.repo_id, self.private)
            settings.write_text(json.dumps(values | {"result": str(result)}), encoding="utf-8")
            argv = [sys.executable, str(include_dir() / "jobs" / "upload.py"), "--settings", str(settings)]
            done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
            lines = (done.stdout + done.stderr).splitlines()
            for line in lines:
                self.log.info("%s", line)
            if done.returncode:
                word = result.with_name("reason.json")
                reason = json.loads(word.read_text(encoding="utf-8")) if word.exists() else None
                raise self._failed(context, done.returncode, lines, reason)
            return json.loads(result.read_text(encoding="utf-8"))

    def _failed(
        self, context: Context, code: int, lines: list[str], reason: dict[str, Any] | None
    ) -> HubUploadFailed:
        """Why it failed, as of a job on a cluster: by the uploader's own word, else by what it printed."""
        final, last = code in FINAL_EXIT_CODES, lines[-LAST_LINES:]
        known = Evidence(reason=reason, last_line=last[-1] if last else f"it ended with exit code {code}")
        name = f"upload {context['ti'].try_number}"
        here = Place(cluster="", job_id="", directory="", logs=())
        explained = explain(context, self, known, here, name=name, final=final, last_lines=lines)
        event = {
            "model_dir": self.model_dir,
            "repo_id": self.repo_id,
            "host": socket.gethostname(),
            "exit_code": code,
            "last_lines": last,
        }
        return (HubUploadCannotSucceed if final else HubUploadFailed)(event, explained)
