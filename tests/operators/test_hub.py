"""HubUploadOperator from a worker, against the test Hub; on a cluster it is part of tests/e2e."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from llm_bridge.hub.operators import HubUploadOperator

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_test_of_the_worker_upload"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a test Hub of our own."""
    folder = tmp_path_factory.mktemp("hub")
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps({TOKEN: {"user": "alice", "role": "write", "orgs": []}}))
    argv = [
        sys.executable,
        "-m",
        "local_hub",
        "--root",
        str(folder / "root"),
        "--port",
        "0",
        "--tokens",
        str(tokens),
    ]
    server = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    yield server.stdout.readline().split(" at ")[1].split()[0]
    server.terminate()
    server.wait(10)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    for name, content in {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model.safetensors": os.urandom(1000),
    }.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def upload(model: Path, **changes: Any) -> HubUploadOperator:
    options = {"model_dir": str(model), "repo_id": "alice/model", "hub_conn_id": "hub_test", **changes}
    return HubUploadOperator(task_id="upload", **options)


@pytest.fixture
def connection(hub: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_token(token: str) -> None:
        value = {"conn_type": "generic", "host": hub, "password": token}
        monkeypatch.setenv("AIRFLOW_CONN_HUB_TEST", json.dumps(value))

    return set_token


def test_a_worker_uploads_a_folder_that_it_can_read(task: Any, model: Path, connection: Any) -> None:
    connection(TOKEN)
    done = upload(model).execute(task.context)
    assert done["repo_id"] == "alice/model"
    assert {file["path"] for file in done["files"]} >= {"config.json", "tokenizer.json", "model.safetensors"}


def test_a_refused_token_fails_at_once_and_is_in_no_message(
    task: Any, model: Path, connection: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    connection("hf_wrong_token_12345")
    with pytest.raises(AirflowFailException, match="token") as error:
        upload(model).execute(task.context)
    assert "hf_wrong_token_12345" not in str(error.value) + capsys.readouterr().out


def test_a_folder_without_a_model_names_what_is_missing(task: Any, tmp_path: Path, connection: Any) -> None:
    connection(TOKEN)
    with pytest.raises(AirflowFailException, match=r"config\.json"):
        upload(tmp_path).execute(task.context)


def test_missing_arguments_are_told_when_the_dag_is_parsed(model: Path) -> None:
    with pytest.raises(ValueError, match="give model_dir, repo_id and hub_conn_id, or job"):
        HubUploadOperator(task_id="upload", model_dir=str(model))
