"""Sweep: its runs, and their comparison."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    DagRunTriggerException,
    TaskDeferred,
)

from llm_bridge.exceptions import ConfigError
from llm_bridge.pipeline import sweep
from llm_bridge.pipeline.sweep import CompareSweepOperator, PlanSweepOperator, SweepRunOperator
from llm_bridge.triggers.turn import TurnTrigger

GRID = "ppo.actor_rollout_ref.actor.optim.lr = 1.0e-6, 3.0e-6\nppo.algorithm.gamma = 0.9, 1.0"


def plan(grid: str = GRID, **params: Any) -> list[dict[str, Any]]:
    context: Any = {
        "ti": SimpleNamespace(run_id="manual__1"),
        "params": {"recipe": "tiny_cpu", "cluster": "local", "sweep": grid, "at_once": 2, **params},
    }
    return PlanSweepOperator(task_id="plan").execute(context)


def test_each_point_has_a_run_of_its_own_whose_id_is_always_the_same() -> None:
    found = plan(overrides="ppo.data.seed=1", stages=["prepare", "ppo", "merge", "evaluate"], start_stage="")
    assert found == plan(
        overrides="ppo.data.seed=1", stages=["prepare", "ppo", "merge", "evaluate"], start_stage=""
    )
    assert [each["trigger_run_id"] for each in found] == [f"sweep__manual__1__0{n}" for n in (1, 2, 3, 4)]
    assert found[0]["point"] == "lr=1.0e-6, gamma=0.9"
    assert found[0]["conf"] == {
        "recipe": "tiny_cpu",
        "cluster": "local",
        "stages": ["prepare", "ppo", "merge", "evaluate"],
        "overrides": (
            "ppo.data.seed=1\nppo.actor_rollout_ref.actor.optim.lr=1.0e-6\nppo.algorithm.gamma=0.9"
        ),
        "run_name": "sweep__manual__1__01 lr=1.0e-6, gamma=0.9",
    }


def test_a_sweep_over_recipes_and_nodes_fills_in_their_fields() -> None:
    found = plan("recipe = tiny_cpu, tiny_grpo_cpu\nnodes = 2")
    assert [each["conf"]["recipe"] for each in found] == ["tiny_cpu", "tiny_grpo_cpu"]
    assert found[0]["conf"]["nodes"] == 2


def test_fields_for_keys_of_the_recipe_hold_for_all_runs_and_may_be_in_the_grid() -> None:
    found = plan(
        "ppo.algorithm = ppo, grpo\nsft.optim.lr = 1e-3", **{"data.max_rows": 32, "evaluate.rows": None}
    )
    assert [each["conf"]["ppo.algorithm"] for each in found] == ["ppo", "grpo"]
    assert all(each["conf"]["data.max_rows"] == 32 and "evaluate.rows" not in each["conf"] for each in found)
    with pytest.raises(ConfigError, match=r"sft\.optim\.lr is the field 'Learning rate' of section SFT"):
        plan("sft.optim.lr = 1e-3, 1e-4", **{"sft.optim.lr": "1e-5"})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("ppo.algorithm.gamma = 0.9,", "line 1"),
        ("nodes = 2, none", "1 errors, no run was started:\n  - nodes=none: the trigger form"),
        ("recipe = tiny_cpu, tiny", "recipe=tiny: 'tiny' is not one of the recipes"),
        ("sft.data.micro_batch_size_per_gpu = 8, 3", "micro_batch_size_per_gpu=3: recipe 'tiny_cpu'"),
    ],
)
def test_a_grid_with_a_point_that_cannot_run_starts_nothing(grid: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(grid)


class Airflow:
    """Stands for Airflow's API, as a task sees it."""

    dag_id, run_id, task_id = "sweep", "s", "run"

    def __init__(self, map_index: int = 0) -> None:
        self.map_index = map_index
        self.runs: dict[str, str] = {}
        self.sweep = "running"
        self.states: dict[str, str] = {}
        self.pushed: dict[str, Any] = {}
        self.xcoms: dict[Any, Any] = {}

    def get_dr_count(self, dag_id: str, run_ids: list[str]) -> int:
        return sum(run in self.runs for run in run_ids)

    def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
        return self.sweep if dag_id == "sweep" else self.runs[run_id]

    def get_task_states(self, **_: Any) -> dict[str, dict[str, str]]:
        return {"s": self.states}

    def get_dag(self, dag_id: str) -> Any:
        return SimpleNamespace(is_paused=False)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, **which: Any) -> Any:
        return self.xcoms.get((which.get("dag_id"), which.get("run_id"), which["task_ids"]))


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Airflow]:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    found = Airflow()
    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", found.get_task_states)
    yield found


def start(airflow: Airflow, at_once: int = 2) -> None:
    context: Any = {"ti": airflow, "params": {"at_once": at_once}}
    conf = {"recipe": "tiny_cpu", "overrides": "ppo.data.x={{ conn.hub.password }}"}
    SweepRunOperator(task_id="run", trigger_run_id="r", conf=conf, point="x=1").execute(context)


def test_a_point_starts_its_run_once(airflow: Airflow) -> None:
    with pytest.raises(DagRunTriggerException) as started:
        start(airflow)
    assert (started.value.trigger_dag_id, started.value.dag_run_id) == ("post_training", "r")
    assert started.value.wait_for_completion and started.value.deferrable and not started.value.reset_dag_run
    airflow.runs["r"] = "running"  # the worker was killed after that
    with pytest.raises(TaskDeferred) as deferred:
        start(airflow)
    assert deferred.value.method_name == "execute_complete"
    airflow.runs["r"] = "success"
    start(airflow)
    airflow.runs["r"] = "failed"
    with pytest.raises(
        AirflowFailException, match=r"run r of post_training is failed.*Clear its failed tasks"
    ):
        start(airflow)


def test_what_a_user_types_is_no_template() -> None:
    assert SweepRunOperator.template_fields == ()


def test_a_point_waits_for_its_turn(airflow: Airflow) -> None:
    airflow.map_index = 2
    airflow.states |= {"run_0": "deferred", "run_1": "deferred"}
    with pytest.raises(TaskDeferred) as deferred:
        start(airflow)
    assert isinstance(deferred.value.trigger, TurnTrigger) and deferred.value.method_name == "execute_turn"
    airflow.states["run_1"] = "success"
    with pytest.raises(DagRunTriggerException):
        start(airflow)


def test_a_sweep_that_was_ended_starts_no_more_runs(airflow: Airflow) -> None:
    airflow.sweep = "failed"
    with pytest.raises(AirflowSkipException, match="the sweep is failed"):
        start(airflow)


def test_the_end_of_the_run_is_the_end_of_the_task() -> None:
    operator = SweepRunOperator(task_id="run", trigger_run_id="r", conf={}, point="x=1")
    operator.execute_complete({}, ("path", {"run_ids": ["r"], "r": "success"}))  # type: ignore[typeddict-item]
    with pytest.raises(AirflowFailException):
        operator.execute_complete({}, ("path", {"run_ids": ["r"], "r": "failed"}))  # type: ignore[typeddict-item]


def test_the_comparison_marks_the_best_run_and_links_to_the_run_page(
    airflow: Airflow, capsys: pytest.CaptureFixture[str]
) -> None:
    def summary(score: float, hours: float) -> dict[str, Any]:
        model = {"score": score, "interval": [score - 0.1, score + 0.1]}
        return {"evaluation": {"models": {"base": {"score": 0.1}, "rl": model}}, "gpu_hours": hours}

    airflow.xcoms[None, None, "plan"] = [
        {"trigger_run_id": f"s__0{n}", "point": f"lr={n}"} for n in range(1, 5)
    ]
    airflow.runs = {"s__01": "success", "s__02": "success", "s__03": "failed"}
    airflow.xcoms |= {
        ("post_training", "s__01", "summary"): summary(0.5, 2.0),
        ("post_training", "s__02", "summary"): summary(0.5, 1.0),
    }
    context: Any = {"ti": airflow}
    found = CompareSweepOperator(task_id="compare").execute(context)
    assert found["best"] == "s__02", "as good as the first one, for fewer GPU-hours"
    assert [run["state"] for run in found["runs"]] == ["success", "success", "failed", "not started"]
    assert found["compare"].startswith(
        "llm-bridge/runs?compare=%5B%22post_training%22%2C+%22s__01%22%5D&compare="
    )
    log = capsys.readouterr().out
    assert "02   lr=2      success      0.5    0.4 to 0.6     0.1   1          <- best" in log
    airflow.runs = {}
    with pytest.raises(AirflowFailException, match="no run has succeeded"):
        CompareSweepOperator(task_id="compare").execute(context)


def test_without_scores_no_run_is_the_best() -> None:
    row = {"run_id": "r", "state": "success", "score": None, "gpu_hours": 1.0}
    assert sweep.best_of([row]) is None
