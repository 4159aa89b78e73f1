"""What the run page makes of a run's records."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.monitoring import history
from llm_bridge.monitoring.run_record import LIVE_XCOM
from llm_bridge.remote.node.verl import tuning
from llm_bridge.ui import view
from llm_bridge.ui.database import RunRecords, TaskRecord

NOW = 10_000.0


def attempt(name: str, **values: Any) -> dict[str, Any]:
    return {"directory": f"/w/{name}", "name": f"Slurm job {name}", "job_id": name, "gpus": 2, **values}


def task(
    task_id: str,
    state: str,
    *attempts: dict[str, Any],
    live: Any = None,
    ended: float | None = None,
    **xcoms: Any,
) -> TaskRecord:
    found = {**xcoms, **({LIVE_XCOM: live} if live else {})}
    return TaskRecord(
        task_id, state, 1, 3, 0.0, ended, found, {history.STORE_KEY: {"attempts": list(attempts)}}
    )


def run(*tasks: TaskRecord, ended: float | None = None) -> dict[str, Any]:
    records = RunRecords("d", "r", "running", 0.0, 0.0, ended, {}, {t.task_id: t for t in tasks})
    return view.run(records, NOW)


def test_a_job_in_the_queue_has_its_reason_and_the_estimate_of_its_start() -> None:
    live = {"directory": "/w/1", "state": "PENDING", "reason": "Priority", "expected_start": 12_000}
    (found,) = run(task("sft.train", "deferred", attempt("1", submitted=9000.0), live=live))["attempts"]
    assert (found["state"], found["reason"], found["expected_start"]) == ("queued", "Priority", 12_000)
    assert found["until"] == NOW


def test_an_attempt_whose_task_was_marked_has_ended() -> None:
    (found,) = run(task("sft.train", "failed", attempt("1", submitted=1.0, started=2.0), ended=50.0))[
        "attempts"
    ]
    assert (found["state"], found["ended"]) == ("ended", 50.0)


def test_only_the_newest_attempt_of_a_task_can_run() -> None:
    both = attempt("1", submitted=1.0, started=2.0), attempt("2", submitted=3.0, started=4.0)
    assert [a["state"] for a in run(task("sft.train", "deferred", *both))["attempts"]] == ["ended", "running"]


def test_a_ray_cluster_runs_until_its_teardown_and_counts_once_with_the_ray_job_in_it() -> None:
    up = task("ppo.ray_up", "success", attempt("7", submitted=0.0, started=100.0, result="ready"))
    job = attempt("ray", kind="ray", job_id="7", gpus=0, submitted=200.0)
    wait = task("ppo.wait", "deferred", job)
    now = run(up, wait)
    assert [a["state"] for a in now["attempts"]] == ["ready", "running"]
    assert now["gpu_hours"] == pytest.approx((NOW - 100) * 2 / 3600)
    later = run(up, wait, task("ppo.ray_down", "success", ended=1900.0))
    assert later["attempts"][0]["state"] == "ended"
    assert later["gpu_hours"] == pytest.approx(1800 * 2 / 3600)


def test_clearing_a_run_whose_ray_cluster_is_not_needed_again_adds_no_gpu_hours() -> None:
    up = task("ppo.ray_up", "skipped", attempt("7", submitted=0.0, started=100.0, result="ready"))
    job = attempt("ray", kind="ray", job_id="7", gpus=0, submitted=200.0, ended=1900.0, result="success")
    found = run(
        up, task("ppo.wait", "skipped", job), task("ppo.ray_down", "skipped", ended=9000.0), ended=9000.0
    )
    assert found["gpu_hours"] == pytest.approx(1800 * 2 / 3600)


def test_a_job_that_two_tasks_use_one_after_the_other_counts_once() -> None:
    first = attempt("7", submitted=0.0, started=0.0 + 1, ended=3601.0, result="ready")
    second = attempt("7", submitted=3601.0, started=1.0, ended=7201.0, result="success")
    found = run(task("sft.train", "success", first), task("ppo.ray_up", "success", second), ended=7201.0)
    assert found["gpu_hours"] == pytest.approx(4)


def test_a_task_whose_worker_could_not_store_its_attempt_shows_the_live_one() -> None:
    live = {"directory": "/w/1", "state": "RUNNING", "started": 5.0, "progress": {"step": 2}}
    (found,) = run(task("own", "deferred", live=live))["attempts"]
    assert (found["state"], found["progress"]) == ("running", {"step": 2})


def test_values_that_are_not_what_they_should_be_show_nothing() -> None:
    found = run(
        task("prepare.run", "success", return_value="x", live="y"), task("check", "success", return_value=[1])
    )
    assert found["data"] == {} and found["attempts"] == [] and found["settings"] == {}


def test_the_tuners_measurements_are_shown_as_far_as_they_are_there() -> None:
    own = tuning.Candidate(False, 4, True, False)
    fast = tuning.Measured(own._replace(size=8), 250.0)
    report = tuning.advice(
        tuning.Training(own, 8, 64, False, False), [tuning.Measured(own, 100.0), fast], None
    )
    found = run(
        task("sft.train", "success", return_value={"result": {"tuning": {**report, "applied": True}}})
    )
    assert found["tuning"] == {**report, "applied": True}
    assert found["tuning"]["settings"] == {tuning.MICRO: 8} and len(found["tuning"]["measured"]) == 2
    assert run(task("sft.train", "success", return_value={"result": {}}))["tuning"] is None
    odd = run(task("sft.train", "success", return_value={"result": {"tuning": {"text": "x", "measured": 3}}}))
    assert odd["tuning"]["measured"] == [] and odd["tuning"]["settings"] == {}


@pytest.mark.parametrize(("stages", "shown"), [(["sft", "ppo"], "grpo"), (["sft"], None)])
def test_the_algorithm_of_rl_is_shown_only_of_a_run_with_rl(stages: list[str], shown: str | None) -> None:
    plan = {"stages": stages, "recipe": {"ppo": {"algorithm": "grpo"}}}
    assert run(task("check", "success", return_value=plan))["algorithm"] == shown


def test_a_link_that_is_no_web_address_is_left_out() -> None:
    found = run(
        task(
            "ppo.wait", "success", wandb_run="javascript:alert(1)", ray_dashboard="https://ray.example.org/x"
        )
    )
    assert [link["url"] for link in found["links"]] == ["https://ray.example.org/x"]


def test_an_attempt_shows_what_accounting_says_at_once_of_a_failed_job_and_with_the_summary_of_the_others() -> (
    None
):
    failed = attempt("1", started=1.0, ended=2.0, result="failed", efficiency={"cpu_percent": 3})
    good = attempt("2", started=3.0, ended=4.0, result="success")
    trained = task("sft.train", "success", failed, good)
    found = run(trained)["attempts"]
    assert [a["efficiency"] for a in found] == [{"cpu_percent": 3}, {}]
    used = [{"directory": "/w/2", "job_id": "2", "cpu_percent": 50}, {"directory": "/w/other"}, "no row"]
    found = run(trained, task("summary", "success", summary={"efficiency": used}))["attempts"]
    assert [a["efficiency"].get("cpu_percent") for a in found] == [3, 50]


def test_a_training_that_failed_shows_the_checkpoints_to_resume_from() -> None:
    check = task("check", "success", return_value={"directory": "/w/d/r"})
    failed = attempt("1", result="failed", diagnosis={"step": 40})
    found = run(check, task("sft.train", "failed", failed))
    assert found["checkpoints"] == [
        {"stage": "sft, not complete", "path": "/w/d/r/sft/checkpoints", "step": 40}
    ]
    assert found["commands"][-2]["command"].startswith("sacct -j 1 -o JobID,")
    trained = task(
        "sft.train", "success", failed, return_value={"result": {"checkpoint_dir": "/c", "step": 9}}
    )
    assert run(check, trained)["checkpoints"] == [{"stage": "sft", "path": "/c", "step": 9}]
