"""Content and occasions of alerts about failures and successes, sent to a real web server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.diagnosis.report import titled
from llm_bridge.exceptions import ConfigError
from llm_bridge.notifications import callbacks
from llm_bridge.operators.exceptions import SlurmJobFailed
from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.remote.node.evaluate import report
from llm_bridge.slurm.events import EndReason, HangReport, SlurmJobEvent
from llm_bridge.slurm.status import JobInfo

DIAGNOSIS = {
    "kind": "cuda_out_of_memory",
    "title": "a GPU ran out of memory",
    "evidence": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "node": "gpu95",
    "advice": "lower micro_batch_size_per_gpu in the recipe",
    "next_action": "no retry: the same batch on the same GPUs needs the same memory",
    "source": "output.log",
    "try_number": 2,
    "max_tries": 3,
    "gpu_hours": 3.25,
    "lost_gpu_hours": 0.5,
    "step": 40,
}
EVENT = SlurmJobEvent(
    job_id="7",
    cluster="big",
    directory="/w/nightly/run/sft/attempt-2",
    end=EndReason.ENDED,
    info=JobInfo("7", "FAILED", reason="NonZeroExitCode", nodes="gpu[94-95]", exit_code=1),
    last_lines=("step:41", "torch.OutOfMemoryError"),
)


class Ti(SimpleNamespace):
    """The parts of a task instance that callbacks read."""

    def __init__(self, task_id: str = "sft.train", **values: Any) -> None:
        super().__init__(
            dag_id="nightly",
            run_id="scheduled__2026-11-25",
            task_id=task_id,
            map_index=-1,
            try_number=1,
            max_tries=2,
            log_url="https://airflow.example.org/log",
            states={},
            xcoms={},
            previous=None,
        )
        self.__dict__.update(values)

    def xcom_pull(self, *, task_ids: str, key: str, map_indexes: Any = None) -> Any:
        return self.xcoms.get(key)

    def get_task_states(self, *, dag_id: str, run_ids: list[str]) -> dict[str, dict[str, str]]:
        return {run_ids[0]: self.states}

    def get_previous_dagrun(self) -> Any:
        return self.previous


def context(ti: Ti, exception: Any = None, *, teardown: bool = False, run_type: str = "scheduled") -> Any:
    started = datetime.now(UTC) - timedelta(hours=3)
    return {
        "ti": ti,
        "task": SimpleNamespace(is_teardown=teardown),
        "dag_run": SimpleNamespace(run_type=run_type, start_date=started),
        "exception": exception,
        "task_state_store": Store(),
    }


class Store(dict[str, Any]):
    """Stands for Airflow's ``task_state_store``; tests/notifications has the real one."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        del self[key]


@pytest.fixture(autouse=True)
def hook(include: Any, posts: Any) -> None:
    include(http={"conn_id": "hook"})


def test_the_alert_about_a_failure_has_its_diagnosis(posts: Any) -> None:
    error = SlurmJobFailed(EVENT)
    error.diagnosis = SimpleNamespace(as_dict=lambda: DIAGNOSIS)  # type: ignore[attr-defined]
    callbacks.failed(context(Ti(), error))
    ((_, said),) = posts
    assert said["title"] == "[llm-bridge] nightly: sft.train failed: a GPU ran out of memory"
    assert said["facts"] == {
        "What": "a GPU ran out of memory",
        "Class": "cuda_out_of_memory",
        "Evidence": DIAGNOSIS["evidence"],
        "Node": "gpu95",
        "Try": "2 of 3",
        "GPU-hours": "3.2 spent, 0.5 lost since the checkpoint of step 40",
        "Next": "no retry: the same batch on the same GPUs needs the same memory",
        "What to do": "lower micro_batch_size_per_gpu in the recipe",
        "Run": "scheduled__2026-11-25",
    }
    assert said["lines"] == ["step:41", "torch.OutOfMemoryError"]
    assert said["links"] == {
        "Log": "https://airflow.example.org/log",
        "Run": "https://airflow.example.org/dags/nightly/runs/scheduled__2026-11-25",
        "On the cluster": "/w/nightly/run/sft/attempt-2",
    }


def test_the_diagnosis_in_the_tasks_xcom_is_used_if_there_is_no_exception(posts: Any) -> None:
    """There is none if the worker was killed."""
    callbacks.failed(context(Ti(xcoms={"diagnosis": DIAGNOSIS}), None))
    assert posts[0][1]["facts"]["Class"] == "cuda_out_of_memory"
    callbacks.failed(context(Ti(xcoms={"diagnosis": DIAGNOSIS}), RuntimeError("something else")))
    assert "Class" not in posts[1][1]["facts"]


def test_without_a_diagnosis_the_alert_has_the_text_of_the_exception(posts: Any) -> None:
    callbacks.failed(context(Ti(xcoms={"slurm_job": {"directory": "/w/a"}}), RuntimeError("first\nsecond")))
    callbacks.failed(context(Ti(), SlurmJobFailed(EVENT)))
    callbacks.failed(context(Ti(), None))
    plain, slurm, nothing = (said for _, said in posts)
    assert plain["facts"]["What"] == "first" and plain["facts"]["Evidence"] == "second"
    assert plain["facts"]["Try"] == "1 of 3" and plain["links"]["On the cluster"] == "/w/a"
    assert "clear the task" in plain["facts"]["Next"]
    assert slurm["facts"]["Node"] == "gpu[94-95]"
    assert slurm["facts"]["Evidence"] == "torch.OutOfMemoryError"
    assert "GPU-hours" not in slurm["facts"]
    assert nothing["title"].startswith("[llm-bridge] nightly: sft.train failed")


def test_a_teardown_that_fails_after_another_task_causes_no_second_alert(posts: Any) -> None:
    teardown = Ti("ppo.ray_down", states={"ppo.wait": "failed", "merge.run": "upstream_failed"})
    callbacks.failed(context(teardown, RuntimeError("not gone"), teardown=True))
    assert posts == []
    alone = Ti("ppo.ray_down", states={"ppo.wait": "success", "ppo.ray_down": "failed"})
    callbacks.failed(context(alone, RuntimeError("not gone"), teardown=True))
    assert len(posts) == 1


def test_a_failure_that_is_retried_is_sent_if_configured(include: Any, posts: Any) -> None:
    callbacks.retried(context(Ti(), RuntimeError("node failed")))
    assert posts == []
    include(http={"conn_id": "hook"}, retries=True)
    callbacks.retried(context(Ti(), RuntimeError("node failed")))
    assert "failed and is retried" in posts[0][1]["title"]
    assert posts[0][1]["facts"]["Next"] == "Airflow retries the task"


HANG = HangReport(
    "30 min", "gpu[94-95]", "step 41", tuple(f"gpu94: frame {number}" for number in range(40)), ended=True
)


@pytest.mark.parametrize("retries", [False, True])
@pytest.mark.parametrize(
    ("callback", "occasion", "title"),
    [
        (callbacks.retried, "hang", "sft.train hung, was ended and is retried"),
        (callbacks.failed, "failure", "sft.train failed"),
    ],
)
def test_a_job_that_was_ended_because_it_hung_causes_one_alert_with_the_next_action(
    include: Any, posts: Any, mails: Any, retries: bool, callback: Any, occasion: str, title: str
) -> None:
    mail = {"conn_id": "mail", "sender": "a@example.org", "to": ["b@example.org"]}
    include(http={"conn_id": "hook"}, email=mail, retries=retries)
    lines = tuple(f"line {number}" for number in range(40))
    error = SlurmJobFailed(replace(EVENT, end=EndReason.HUNG, hang=HANG, last_lines=lines))
    found = titled(
        "hang", "hang: no output and no new step for 30 min, after step 41", next_action="what follows"
    )
    error.diagnosis = found
    callback(context(Ti(), error))
    ((_, said),) = posts
    assert said["occasion"] == occasion and title in said["title"]
    assert said["facts"]["Evidence"] == found.evidence and said["facts"]["Next"] == "what follows"
    assert said["facts"]["Node"] == "gpu[94-95]"
    assert "line 39" in said["lines"] and "gpu94: frame 0" in said["lines"]
    (sent,) = mails
    assert title in sent["Subject"] and "gpu94: frame 0" in sent.get_body().get_content()


def test_a_job_that_another_triggerer_ended_because_it_hung_causes_the_same_alert(posts: Any) -> None:
    reason = Reason("hang: no output and no new step for 30 min", kind="hang")
    callbacks.retried(context(Ti(), SlurmJobFailed(replace(EVENT, reason=reason))))
    ((_, said),) = posts
    assert said["occasion"] == "hang" and said["facts"]["Evidence"] == reason.reason


def test_a_hang_that_was_only_reported_causes_no_alert_at_the_end_of_the_job(
    include: Any, posts: Any
) -> None:
    """The trigger has sent an alert while the job hung."""
    callbacks.retried(context(Ti(), SlurmJobFailed(replace(EVENT, hang=replace(HANG, ended=False)))))
    assert posts == []


def test_the_success_of_a_run_that_failed_before_is_a_recovery_once(posts: Any) -> None:
    run = context(Ti("summary"), run_type="manual")
    callbacks.run_failed(run)
    assert posts == []
    callbacks.run_succeeded(run)
    ((_, said),) = posts
    assert said["occasion"] == "recovery" and "this run's failure at " in said["facts"]["Recovered from"]
    callbacks.run_succeeded(run)
    assert len(posts) == 1


@pytest.mark.parametrize(("state", "occasion"), [("failed", "recovery"), ("success", "success")])
def test_the_success_of_a_scheduled_run_after_a_failed_run_is_a_recovery(
    posts: Any, state: str, occasion: str
) -> None:
    before = SimpleNamespace(state=state, run_id="last night")
    callbacks.run_succeeded(context(Ti("summary", previous=before)))
    assert [said["occasion"] for _, said in posts] == [occasion]


def test_the_alert_about_a_success_has_the_model_and_the_durations(posts: Any) -> None:
    model = {"repo_id": "me/llama", "url": "https://huggingface.co/me/llama"}
    summary = {"stages": [{"name": "sft", "run_s": 5400.0}, {"name": "ppo", "run_s": None}], "model": model}
    callbacks.run_succeeded(context(Ti("summary", xcoms={"summary": summary})))
    said = posts[0][1]
    assert said["title"] == "[llm-bridge] nightly: succeeded"
    assert said["facts"]["Duration"] == "3 h 0 min" and said["facts"]["Stages"] == "sft 1 h 30 min"
    assert said["facts"]["Model"] == "me/llama" and said["links"]["Model"] == model["url"]
    summary = {"stages": [], "model": None, "refused": "not published because of x"}
    callbacks.run_succeeded(context(Ti("summary", xcoms={"summary": summary})))
    assert posts[1][1]["facts"]["Model"] == "not published because of x"
    assert posts[1][1]["title"] == "[llm-bridge] nightly: succeeded, not published"


def test_the_alert_about_a_night_has_the_scores_beside_those_of_the_night_before(posts: Any) -> None:
    models = {"base": {"score": 0.25}, "rl": {"score": 0.5}}
    evaluation = {"metric": "score", "rows": 500, "conditions": "c", "data": {"hash": "d"}, "models": models}
    previous = {"run_id": "monday", "scores": {"rl": 0.45}, **report.comparable(evaluation)}
    others: list[dict[str, Any]] = [{"rows": 100}, {"conditions": "other"}, {"data_hash": "other"}]
    for change in ({}, *others):
        summary = {"stages": [], "evaluation": evaluation, "previous": {**previous, **change}}
        callbacks.run_succeeded(context(Ti("summary", xcoms={"summary": summary})))
    assert [said["facts"]["Score"] for _, said in posts] == [
        "score: base 0.2500, rl 0.5000 (0.4500 in monday)",
        *["score: base 0.2500, rl 0.5000"] * len(others),
    ]


def test_the_alert_about_a_night_in_which_nothing_has_changed_says_since_when(posts: Any) -> None:
    summary = {"stages": [], "unchanged_since": "monday", "evaluation": None}
    callbacks.run_succeeded(context(Ti("summary", xcoms={"summary": summary})))
    assert posts[0][1]["title"] == "[llm-bridge] nightly: succeeded, nothing to train"
    assert posts[0][1]["facts"]["Not trained"] == "nothing has changed since run monday"


@pytest.mark.parametrize(
    ("successes", "run_type", "sent"),
    [
        ("scheduled", "manual", 0),
        ("all", "manual", 1),
        ("none", "scheduled", 0),
        ("scheduled", "backfill", 1),
    ],
)
def test_the_runs_whose_success_is_sent_can_be_configured(
    include: Any, posts: Any, successes: str, run_type: str, sent: int
) -> None:
    include(http={"conn_id": "hook"}, successes=successes)
    callbacks.run_succeeded(context(Ti("summary"), run_type=run_type))
    assert len(posts) == sent


def test_the_alert_about_a_wrong_setting_does_not_speak_of_a_checkpoint(posts: Any) -> None:
    callbacks.failed(
        context(Ti("check"), ConfigError("include/recipes/a.yaml: base_model: this key is required"))
    )
    said = posts[0][1]["facts"]["Next"]
    assert said == "no retry: correct it, and clear the task together with those that follow it"
