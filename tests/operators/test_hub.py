"""HubUploadOperator from a worker, against the test Hub; on a cluster it is part of tests/e2e."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from llm_bridge.exceptions import ConfigError
from llm_bridge.notifications import content
from llm_bridge.operators.exceptions import HubUploadFailed, HubUploadPermanentError
from llm_bridge.operators.hub import HubUploadOperator
from llm_bridge.operators.retry_policy import DiagnosisRetryPolicy
from testing.weights import safetensors

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_test_of_the_worker_upload"


class Hub:
    """A test Hub in a process of its own.

    Args:
        folder: Directory for its files, which are kept.
    """

    def __init__(self, folder: Path) -> None:
        tokens, self.root = folder / "tokens.json", folder / "root"
        tokens.write_text(json.dumps({TOKEN: {"user": "alice", "role": "write", "orgs": []}}))
        argv = [sys.executable, "-m", "testing.local_hub", "--root", str(self.root), "--port", "0"]
        argv += ["--tokens", str(tokens)]
        self.server = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout
        self.url = self.server.stdout.readline().split(" at ")[1].split()[0]

    def stop(self) -> None:
        self.server.kill()
        self.server.wait(10)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The test Hub of this file."""
    found = Hub(tmp_path_factory.mktemp("hub"))
    yield found
    found.stop()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the files of a model."""
    for name, data in {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": safetensors(1000),
    }.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def upload(model: Path, **changes: Any) -> HubUploadOperator:
    options = {"model_dir": str(model), "repo_id": "alice/model", "hub_conn_id": "hub_test", **changes}
    return HubUploadOperator(task_id="upload", **options)


@pytest.fixture
def connection(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_token(token: str, url: str = hub.url) -> None:
        value = {"conn_type": "generic", "host": url, "password": token}
        monkeypatch.setenv("AIRFLOW_CONN_HUB_TEST", json.dumps(value))

    return set_token


def failed(task: Any, operator: HubUploadOperator) -> HubUploadFailed:
    """Return the operator's failure, which has all that alerts and retries read."""
    with pytest.raises(HubUploadFailed) as caught:
        operator.execute(task.context)
    error = caught.value
    assert error.diagnosis and error.decision
    assert task.xcoms["diagnosis"] == error.diagnosis.as_dict()
    assert "reason.json" in error.diagnosis.source and (
        error.diagnosis.try_number,
        error.diagnosis.max_tries,
    ) == (1, 3)
    message = content.failure_message({**task.context, "exception": error}, "failure")
    facts = dict(message.facts)
    assert facts["Class"] == error.diagnosis.kind and facts["Evidence"] == error.diagnosis.evidence
    assert facts["Next"] == error.decision.text and facts["What to do"] == error.diagnosis.advice
    return error


def retry(error: HubUploadFailed) -> RetryAction:
    return DiagnosisRetryPolicy().evaluate(error, 1, 3).action


def test_a_worker_uploads_a_folder_that_it_can_read(task: Any, model: Path, connection: Any) -> None:
    connection(TOKEN)
    done = upload(model).execute(task.context)
    assert done["repo_id"] == "alice/model"
    assert {file["path"] for file in done["files"]} >= {"config.json", "tokenizer.json", "model.safetensors"}


def test_a_refused_token_fails_at_once_and_is_in_no_message(
    task: Any, model: Path, connection: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    connection("hf_wrong_token_12345")
    error = failed(task, upload(model))
    assert isinstance(error, HubUploadPermanentError) and retry(error) is RetryAction.FAIL
    assert error.diagnosis.kind == "token_refused" and "refused the token (401)" in error.diagnosis.evidence
    assert "hf_wrong_token_12345" not in str(error) + str(task.xcoms) + capsys.readouterr().out


@pytest.mark.parametrize("password", ["hf_two words", "hf_ünïcode", "", " \n"])
def test_the_error_of_a_password_that_cannot_be_a_token_names_its_connection_and_not_the_password(
    task: Any, model: Path, connection: Any, password: str, capsys: pytest.CaptureFixture[str]
) -> None:
    connection(password)
    with pytest.raises(ConfigError, match="connection 'hub_test'") as error:
        upload(model).execute(task.context)
    assert "hf_" not in str(error.value) + capsys.readouterr().out


def test_a_line_end_after_the_token_is_ignored(task: Any, model: Path, connection: Any) -> None:
    connection(f"{TOKEN}\n")
    assert upload(model, repo_id="alice/line-end").execute(task.context)["repo_id"] == "alice/line-end"


def test_the_error_of_a_folder_without_a_model_names_the_missing_files(
    task: Any, tmp_path: Path, connection: Any
) -> None:
    connection(TOKEN)
    error = failed(task, upload(tmp_path))
    assert isinstance(error, HubUploadPermanentError) and retry(error) is RetryAction.FAIL
    assert error.diagnosis.kind == "missing_path" and "config.json" in error.diagnosis.evidence


def test_an_invalid_repository_name_is_a_wrong_setting(task: Any, model: Path, connection: Any) -> None:
    connection(TOKEN)
    with pytest.raises(ConfigError, match=r"repo_id='no-owner' must be OWNER/NAME"):
        upload(model, repo_id="no-owner").execute(task.context)


def test_an_account_without_space_is_diagnosed_as_a_full_disk_and_not_as_a_refused_token(
    task: Any, model: Path, connection: Any
) -> None:
    """The Hub answers 403 in both cases. This server accepts the token, and answers all else as a full Hub does."""
    message = (
        "Private repository storage limit reached, please upgrade your plan to increase your private storage "
        "limit."
    )

    class Full(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/api/whoami-v2"
            self.send_response(200 if known else 404)
            self.send_header("X-Error-Code", "" if known else "RepoNotFound")
            self.end_headers()
            self.wfile.write(b'{"name": "alice"}' if known else b"{}")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(403)
            self.send_header("X-Error-Message", message)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Full)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection(TOKEN, f"http://127.0.0.1:{server.server_port}")
    error = failed(task, upload(model))
    server.shutdown()
    assert error.diagnosis.kind == "disk_full" and message in error.diagnosis.evidence
    assert retry(error) is RetryAction.FAIL


def test_an_upload_whose_hub_stops_in_the_middle_is_retried(
    task: Any, model: Path, connection: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The Hub is killed when it has created the repository and has no weights yet."""
    hub = Hub(tmp_path_factory.mktemp("stops"))
    connection(TOKEN, hub.url)
    (model / "model.safetensors").write_bytes(safetensors(30_000_000))

    def stop_in_the_middle() -> None:
        while not [path for path in hub.root.rglob("*") if path.name == "model"]:
            time.sleep(0.01)
        hub.stop()

    stopping = threading.Thread(target=stop_in_the_middle)
    stopping.start()
    error = failed(task, upload(model))
    stopping.join()
    assert error.diagnosis.kind == "hub_unavailable" and "cannot reach the Hub" in error.diagnosis.evidence
    assert retry(error) is RetryAction.RETRY and not isinstance(error, HubUploadPermanentError)


def test_missing_arguments_are_an_error_when_the_dag_is_parsed(model: Path) -> None:
    with pytest.raises(ValueError, match="give either job, or model_dir, repo_id and hub_conn_id"):
        HubUploadOperator(task_id="upload", model_dir=str(model))
