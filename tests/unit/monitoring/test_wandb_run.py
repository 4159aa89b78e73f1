"""The address of a W&B run, from the attempt's directory to the button on the task's page."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.xcom import XCom

from llm_bridge.monitoring import wandb_run
from llm_bridge.operators.links import WandbLink, push_wandb_link
from llm_bridge.remote import attempt_dir

URL = "https://wandb.ai/acme/p/runs/r-sft-0"
TASK = {"dag_id": "d", "task_id": "sft.train", "run_id": "r", "map_index": -1}


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """XComs that are set."""
    found: list[Any] = []
    monkeypatch.setattr(XCom, "set", lambda *arguments, **task: found.append((*arguments, task)))
    return found


def trigger(task: dict[str, Any] | None = TASK) -> Any:
    ti = SimpleNamespace(**task) if task else None
    return SimpleNamespace(log=logging.getLogger("t"), task_instance=ti)


def run(url: Any) -> dict[str, Any]:
    return {attempt_dir.WANDB_RUN: {"id": "r-sft-0", "url": url}}


async def test_the_trigger_stores_the_address_for_the_tasks_button_while_the_job_runs(
    stored: list[Any],
) -> None:
    await wandb_run.store_address(trigger(), run(URL))
    assert stored == [(WandbLink.xcom_key, URL, TASK)]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {attempt_dir.WANDB_RUN: None},
        {attempt_dir.WANDB_RUN: "x"},
        *(run(url) for url in (None, 3, "", "javascript:alert(1)", "https://a b", "https://" + "a" * 600)),
    ],
)
async def test_what_is_no_address_of_a_web_page_is_no_link(files: dict[str, Any], stored: list[Any]) -> None:
    await wandb_run.store_address(trigger(), files)
    pushed: list[Any] = []
    found = files.get(attempt_dir.WANDB_RUN)
    result = {"wandb": found["url"]} if isinstance(found, dict) else found
    push_wandb_link(SimpleNamespace(xcom_push=pushed.append), result)
    assert stored == pushed == []


async def test_airflow_that_refuses_the_link_does_not_end_the_trigger(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any, **task: Any) -> None:
        raise RuntimeError("no API server")

    monkeypatch.setattr(XCom, "set", refuse)
    await wandb_run.store_address(trigger(), run(URL))
    assert f"no button to its W&B run {URL}: no API server" in caplog.text


async def test_outside_of_a_triggerer_the_link_comes_from_the_result(stored: list[Any]) -> None:
    await wandb_run.store_address(trigger(None), run(URL))
    pushed = {}
    push_wandb_link(SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value})), {"wandb": URL})
    assert (stored, pushed) == ([], {WandbLink.xcom_key: URL})
