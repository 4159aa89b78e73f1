"""Settings of an upload; tests/operators runs the operator against the test Hub."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from airflow.sdk.execution_time.context import OutletEventAccessors

from llm_bridge.exceptions import ConfigError
from llm_bridge.operators.hub import MODELS, HubUploadOperator, add_asset_event, model_asset, upload_settings


@pytest.mark.parametrize(
    "repo_id", [None, "model", "me/my--model", "me/model-", "me/" + "m" * 200, "m" * 200 + "/me"]
)
def test_a_repository_id_that_the_hub_does_not_allow_is_refused_before_anything_runs(
    repo_id: str | None,
) -> None:
    with pytest.raises(ConfigError, match="must be OWNER/NAME"):
        upload_settings("/w/model", repo_id, private=True)


def test_an_upload_from_a_worker_logs_each_line_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    # The program ends only after its first line was logged.
    program = (
        "import pathlib, sys, time\n"
        "print('Signed in', flush=True)\n"
        f"while not pathlib.Path({str(seen)!r}).exists(): time.sleep(0.01)\n"
        "print('a problem', file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    upload = HubUploadOperator(task_id="upload", model_dir="/m", repo_id="me/model", hub_conn_id="hub")
    logger = logging.getLogger("upload-test")
    monkeypatch.setattr(logger, "info", lambda *_: seen.touch())
    monkeypatch.setattr(type(upload), "log", logger)
    assert upload._run_and_log([sys.executable, "-c", program], {}) == (3, ["Signed in", "a problem"])


def test_an_upload_adds_one_event_of_the_models_asset_with_revision_and_score() -> None:
    context: Any = {"outlet_events": OutletEventAccessors()}
    result = {"repo_id": "me/model", "revision": "abc", "url": "u", "files": [], "score": 0.5}
    for _ in range(2):
        add_asset_event(context, result)
    [event] = context["outlet_events"][MODELS].asset_alias_events
    assert event.extra == {"repo_id": "me/model", "revision": "abc", "url": "u", "score": 0.5}
    assert event.dest_asset_key.uri == model_asset("me/model").uri == "hf://me/model"


def test_a_pull_request_is_no_event_of_the_asset() -> None:
    context: Any = {"outlet_events": None}
    add_asset_event(context, {"repo_id": "me/model", "revision": "abc", "pull_request": "http://hub/pr/1"})


def test_an_upload_whose_model_is_not_better_any_more_is_skipped_with_its_reason() -> None:
    pushed: dict[str, str] = {}
    ti = SimpleNamespace(xcom_push=lambda key, value: pushed.__setitem__(key, value))
    upload = HubUploadOperator(task_id="upload", model_dir="/m", repo_id="me/model", hub_conn_id="hub")
    context: Any = {"ti": ti, "outlet_events": None}
    output = {"result": {"repo_id": "me/model", "not_published": "not published because of x"}}
    with pytest.raises(AirflowSkipException, match="not published because of x"):
        upload._with_asset_event(context, output)
    assert pushed == {"not_published": "not published because of x"}


def test_the_asset_belongs_to_every_upload_task() -> None:
    upload = HubUploadOperator(task_id="upload", model_dir="/m", repo_id="me/model", hub_conn_id="hub")
    assert MODELS in upload.outlets
