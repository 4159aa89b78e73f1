"""Nights in which nothing has changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from llm_bridge.pipeline import unchanged
from llm_bridge.pipeline.plan import Plan, make_plan
from llm_bridge.pipeline.unchanged import UnchangedOperator, fingerprint_of

PREPARED = {"data": {"sft": {"report": {"hash": "a"}}, "ppo": {"report": {"hash": "a"}}}}


def plan(**changes: Any) -> Plan:
    made = make_plan({"recipe": "tiny_cpu", "cluster": "local"}, "d", "r")
    return made.model_copy(update={"recipe": made.recipe.model_copy(update=changes)})


def compare(
    run_type: str, trained: dict[str, str] | None, prepared: Any = PREPARED, force: Any = (), **changes: Any
) -> Any:
    """Run the task in run r2, with what the summary of the newest earlier run has left."""
    values = {
        ("check", "return_value"): {**plan(**changes).model_dump(mode="json"), "force_stages": [*force]},
        ("prepare.run", "return_value"): {"result": prepared},
    }
    ti = SimpleNamespace(
        task_id="prepare.compare",
        run_id="r2",
        get_previous_dagrun=lambda state: SimpleNamespace(run_id="r1") if state == "success" else None,
        xcom_pull=lambda task_ids, key="return_value", run_id="r2": (
            values[task_ids, key] if run_id == "r2" else trained
        ),
    )
    context: Any = {"ti": ti, "dag_run": SimpleNamespace(run_type=run_type)}
    return UnchangedOperator(task_id="compare").execute(context)


def trained(run_id: str = "r1") -> dict[str, str]:
    return {"fingerprint": str(fingerprint_of(plan(), PREPARED)), "run_id": run_id}


@pytest.mark.parametrize("run_type", ["scheduled", "backfill"])
def test_a_night_that_would_train_the_same_names_the_run_that_has_trained_it(run_type: str) -> None:
    found = compare(run_type, trained())
    assert found == {"fingerprint": trained()["fingerprint"], "unchanged_since": "r1"}


def test_another_recipe_or_other_stages_are_a_change() -> None:
    fewer = plan().model_copy(update={"stages": ["prepare", "sft"]})
    for other in (plan(base_model="me/other"), fewer):
        assert fingerprint_of(other, PREPARED) != fingerprint_of(plan(), PREPARED)


def test_what_does_not_change_the_model_is_no_change() -> None:
    sft = plan().recipe.sft.model_copy(update={"time_limit": "99", "keep": 1})
    same = plan(description="other", schedule="@daily", logger=["console", "file"], sft=sft)
    assert fingerprint_of(same, PREPARED) == fingerprint_of(plan(), PREPARED)


def test_other_rows_or_another_version_are_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint_of(plan(), PREPARED)
    rows = {"data": {"sft": {"report": {"hash": "b"}}, "ppo": {"report": {"hash": "a"}}}}
    assert fingerprint_of(plan(), rows) != first
    monkeypatch.setattr(unchanged, "VERSION", "99")
    assert fingerprint_of(plan(), PREPARED) != first


def test_without_known_data_nothing_is_skipped() -> None:
    assert fingerprint_of(plan(), None) is None
    assert (
        compare("scheduled", {"fingerprint": "None", "run_id": "r1"}, prepared=None)["unchanged_since"]
        is None
    )


@pytest.mark.parametrize(
    ("run_type", "earlier"),
    [
        ("manual", trained()),
        ("scheduled", None),
        ("scheduled", {"fingerprint": "other", "run_id": "r1"}),
    ],
)
def test_every_other_run_trains(run_type: str, earlier: dict[str, str] | None) -> None:
    found = compare(run_type, earlier)
    assert found["unchanged_since"] is None and found["fingerprint"]


def test_a_backfill_that_forces_a_stage_trains() -> None:
    found = compare("backfill", trained(), force=["sft"])
    assert found == {"fingerprint": trained()["fingerprint"], "unchanged_since": None}


def test_a_recipe_may_train_every_night() -> None:
    with pytest.raises(AirflowSkipException, match="skip_unchanged is false"):
        compare("scheduled", trained(), skip_unchanged=False)
