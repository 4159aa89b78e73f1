"""The gate and the approval as tasks: what runs, what is skipped, and with which sentence."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk.exceptions import AirflowSkipException
from airflow.sdk.execution_time.context import OutletEventAccessors

from llm_bridge.operators.hub import MODELS, HubUploadOperator
from llm_bridge.pipeline import approval, dag, stages
from llm_bridge.pipeline.approval import APPROVAL, EVALUATE, GATE, ApprovalTask, GateOperator
from llm_bridge.pipeline.plan import make_plan

SAMPLE = {
    "prompt": "What is\n# 1 + 1?",
    "truth": "2",
    "answers": {"base": {"text": "", "score": 0.0}, "rl": {"text": "#### 2\n</td>", "score": 1.0}},
}
MODEL = {"path": "/m", "tokens": 10, "length_mean": 5.0, "cut_share": 0.5}
EVALUATION = {
    "metric": "gsm8k",
    "rows": 2,
    "models": {
        "base": {**MODEL, "score": 0.25, "interval": [0.2, 0.3]},
        "rl": {**MODEL, "score": 0.5, "interval": [0.4, 0.6]},
    },
    "differences": {"rl-base": {"mean": 0.25, "interval": [0.1, 0.4]}},
    "samples": [SAMPLE],
    "harness": {},
}


@pytest.fixture
def context(include: Path) -> Any:
    """Make the context of a task in a run whose recipe has these conditions."""

    def make(publish: Any, xcoms: dict[str, Any] | None = None, **params: Any) -> Any:
        file = include / "recipes" / "tiny_cpu.yaml"
        changes = {"publish": publish, "evaluate": {"rows": 4}}
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
        plan = make_plan({"recipe": "tiny_cpu", "cluster": "local", **params}, "d", "r")
        found = {
            "check": plan.model_dump(mode="json"),
            EVALUATE: {"result": {"evaluation": EVALUATION}},
            **(xcoms or {}),
        }
        ti = SimpleNamespace(task_id=GATE, xcom_pull=lambda task_ids, key="return_value": found.get(task_ids))
        return {"ti": ti}

    return make


def test_models_are_shown_in_the_order_of_training_although_postgresql_loses_it(context: Any) -> None:
    models = EVALUATION["models"]
    shuffled = {**EVALUATION, "models": {"rl": models["rl"], "base": models["base"]}}  # type: ignore[index]
    found = approval.evaluation_of(context("approval", {EVALUATE: {"result": {"evaluation": shuffled}}}))
    assert found == shuffled and list(found["models"]) == ["base", "rl"]


def test_the_gate_decides_by_the_evaluation_of_the_run(context: Any) -> None:
    gate = GateOperator(task_id="gate")
    assert gate.execute(context({"better_than": "base"}))["publish"] is True
    refused = gate.execute(context({"min_score": 0.6}))
    assert refused == {
        "publish": False,
        "reason": "not published because the score 0.5 of the RL model is below min_score 0.6",
    }


@pytest.mark.parametrize("publish", ["always", "approval"])
def test_the_gate_is_skipped_without_a_condition_on_the_score(context: Any, publish: str) -> None:
    with pytest.raises(AirflowSkipException, match="no condition on the score"):
        GateOperator(task_id="gate").execute(context(publish))


def test_gate_and_approval_are_skipped_in_a_run_that_does_not_upload(context: Any) -> None:
    for task in (GateOperator(task_id="gate"), ApprovalTask(task_id="approval")):
        with pytest.raises(AirflowSkipException, match="stage 'upload' is not selected"):
            task.execute(context({"min_score": 0.1, "approval": True}, stages=["prepare", "sft"]))


@pytest.mark.parametrize("task", [GATE, APPROVAL])
def test_the_upload_of_a_refused_model_is_skipped_with_the_reason(context: Any, task: str) -> None:
    build = dag._if_published(lambda context: "job")
    refused = context("always", {task: {"publish": False, "reason": "not published because of x"}})
    with pytest.raises(AirflowSkipException, match="not published because of x"):
        build(refused)
    assert build(context("always", {task: {"publish": True, "reason": "y"}})) == "job"
    assert build(context("always")) == "job"


def test_the_asset_of_a_refused_model_gets_no_event(context: Any) -> None:
    refused = context("always", {GATE: {"publish": False, "reason": "not published because of x"}})
    refused["outlet_events"] = OutletEventAccessors()
    upload = HubUploadOperator(task_id="run", job=dag._if_published(dag.for_stage("upload", stages.upload)))
    with pytest.raises(AirflowSkipException, match="not published because of x"):
        upload.execute(refused)
    assert not refused["outlet_events"][MODELS].asset_alias_events


def test_nobody_is_asked_where_the_recipe_wants_no_approval_or_the_gate_has_refused(context: Any) -> None:
    with pytest.raises(AirflowSkipException, match="needs no approval"):
        ApprovalTask(task_id="approval").execute(context("always"))
    refused = {GATE: {"publish": False, "reason": "not published because of x"}}
    with pytest.raises(AirflowSkipException, match="not published because of x"):
        ApprovalTask(task_id="approval").execute(context({"min_score": 0.6, "approval": True}, refused))


def test_the_approval_page_has_scores_and_samples_and_the_time_limit_rejects(
    context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HITLOperator, "execute", lambda self, context: "asked")
    task = ApprovalTask(task_id="approval")
    assert task.execute(context({"approval": True, "approval_hours": 2})) == "asked"
    assert (task.response_timeout, task.defaults) == (timedelta(hours=2), ["Reject"])
    assert task.subject == "Publish the RL model of run r as demo/tiny-llama-gsm8k?" and task.body
    assert "| RL model | 0.5000 | 0.4000 to 0.6000 | 5 | 50.0% |" in task.body
    assert "| rl-base | +0.2500 | +0.1000 to +0.4000 |" in task.body
    assert "    # 1 + 1?" in task.body and "    </td>" in task.body, "a text is no Markdown of the page"
    assert "    (empty)" in task.body


def test_an_answer_of_white_space_is_named_on_the_page_where_markdown_would_show_nothing(
    context: Any,
) -> None:
    plan = approval.plan_of(context("approval"))
    blank = {**SAMPLE, "answers": {"base": {"text": "\n\n ", "score": 0.0}}}
    page = approval.page(plan, {**EVALUATION, "samples": [blank]}, None)
    assert "**base model**, score 0:\n\n    (only white space)" in page


def test_without_an_evaluation_the_page_says_so(context: Any) -> None:
    plan = approval.plan_of(context("approval"))
    assert "no evaluation" in approval.page(plan, None, None)


@pytest.mark.parametrize(
    ("chosen", "user", "decision"),
    [
        ("Approve", {"id": "1", "name": "ada"}, (True, "approved by ada")),
        ("Reject", {"id": "1", "name": "ada"}, (False, "not published because ada rejected it")),
        ("Reject", None, (False, "not published because nobody approved it within 2 hours")),
    ],
)
def test_an_answer_is_a_decision(
    context: Any, monkeypatch: pytest.MonkeyPatch, chosen: str, user: Any, decision: Any
) -> None:
    monkeypatch.setattr(HITLOperator, "execute_complete", lambda self, context, event: event)
    event = {"chosen_options": [chosen], "responded_by_user": user}
    task = ApprovalTask(task_id="approval")
    made = task.execute_complete(context({"approval": True, "approval_hours": 2}), event)
    assert (made["publish"], made["reason"]) == decision
