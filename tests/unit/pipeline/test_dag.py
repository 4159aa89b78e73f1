"""Jobs of the tasks, built from the run's plan; tests/unit/dags checks the graph."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from llm_bridge.config.recipe_keys import KEYS
from llm_bridge.operators.slurm import FOLLOWUP_XCOM, JOB_XCOM
from llm_bridge.pipeline import dag
from llm_bridge.pipeline.form import form
from llm_bridge.pipeline.plan import Form, make_plan
from llm_bridge.remote import attempt_dir

OWN, FOLLOWUP = {"job_id": "7"}, {"job_id": "8"}


def context(found: dict[tuple[str, str], Any] | None = None, **params: Any) -> Any:
    """The context of a task after check and sft.train."""
    plan = make_plan({"recipe": "tiny_cpu", "cluster": "local", **params}, "d", "r")
    xcoms = {
        ("check", "return_value"): plan.model_dump(mode="json"),
        (dag.SFT, JOB_XCOM): OWN,
        (dag.SFT, FOLLOWUP_XCOM): FOLLOWUP,
    }
    ti = SimpleNamespace(
        task_id="sft.train",
        xcom_pull=lambda task_ids, key="return_value": (xcoms | (found or {})).get((task_ids, key)),
    )
    return {"ti": ti}


def test_a_tasks_job_is_built_from_the_plan() -> None:
    build = dag.for_stage("sft", lambda plan: plan.run_name)
    assert build(context(run_name="n")) == "n"


def test_a_stage_that_is_not_selected_is_skipped() -> None:
    build = dag.for_stage("ppo", lambda plan: plan.run_name)
    with pytest.raises(AirflowSkipException, match="stage 'ppo' is not selected for this run; selected: sft"):
        build(context(stages=["sft"]))


def test_a_stage_of_a_night_in_which_nothing_has_changed_is_skipped() -> None:
    build = dag.for_stage("sft", lambda plan: plan.run_name)
    since = {("prepare.compare", "return_value"): {"unchanged_since": "scheduled__1"}}
    with pytest.raises(AirflowSkipException, match="nothing has changed since run scheduled__1 has trained"):
        build(context(since))


@pytest.mark.parametrize(
    ("allocation", "job"), [("per_stage", None), ("queue_ahead", FOLLOWUP), ("shared", OWN)]
)
def test_the_ray_cluster_runs_in_the_job_that_sft_has_submitted_for_it(allocation: str, job: Any) -> None:
    assert dag._sft_ray_job(context(allocation=allocation)) == job


def test_every_directory_with_a_ray_cluster_is_closed_at_the_end() -> None:
    cluster, ppo, *others = dag._ray_stages(context())
    assert cluster == "local" and ppo.endswith("/ppo")
    assert others == [f"{ppo}/{attempt_dir.RECOVERY}", f"{ppo}/{attempt_dir.PREQUEUED}"]
    *_, sft = dag._ray_stages(context(allocation="shared"))
    assert sft.endswith("/sft")


def test_the_form_has_the_fields_of_a_plan_and_the_given_recipe() -> None:
    fields = form("tiny_cpu")
    assert set(fields) == {*Form.model_fields, *KEYS}
    assert fields["recipe"].value == "tiny_cpu"
    for name, field in fields.items():
        assert field.schema.get("title"), name
