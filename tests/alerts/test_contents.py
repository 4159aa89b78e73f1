"""What alerts say of failures and successes, and when they are sent; told to a real web server."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from llm_bridge.alerts import late as late_run
from llm_bridge.alerts import occasions
from llm_bridge.alerts.config import Alerts
from llm_bridge.failures.diagnosis import titled
from llm_bridge.failures.errors import SlurmJobFailed

ROOT = Path(__file__).resolve().parents[2]
DIAGNOSIS = {
    "kind": "cuda_out_of_memory",
    "title": "a GPU ran out of memory",
    "evidence": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "node": "gpu95",
    "advice": "lower micro_batch_size_per_gpu in the recipe",
    "next": "not tried again: the same settings would end the same way",
    "source": "output.log",
    "attempt": 2,
    "of": 3,
    "gpu_hours": 3.25,
    "lost_gpu_hours": 0.5,
    "step": 40,
}
EVENT: dict[str, Any] = {
    "job_id": "7",
    "cluster": "big",
    "directory": "/w/nightly/run/sft/attempt-2",
    "ready": False,
    "info": {"state": "FAILED", "exit_code": 1, "signal": 0, "reason": "NonZeroExitCode", "nodes": "gpu[94-95]"},
    "notice": "",
    "result": None,
    "reason": None,
    "last_lines": ["step:41", "torch.OutOfMemoryError"],
}  # fmt: skip


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
    """Stands for Airflow's ``task_state_store``; test_real_airflow.py has the real one."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value

    def delete(self, key: str) -> None:
        del self[key]


@pytest.fixture(autouse=True)
def hook(include: Any, posts: Any) -> None:
    include(http={"conn_id": "hook"})


def test_a_failure_carries_its_diagnosis(posts: Any) -> None:
    error = SlurmJobFailed(EVENT)
    error.diagnosis = SimpleNamespace(as_dict=lambda: DIAGNOSIS)  # type: ignore[attr-defined]
    occasions.failed(context(Ti(), error))
    ((_, said),) = posts
    assert said["title"] == "[llm-bridge] nightly: sft.train failed: a GPU ran out of memory"
    assert said["facts"] == {
        "What": "a GPU ran out of memory",
        "Class": "cuda_out_of_memory",
        "Evidence": DIAGNOSIS["evidence"],
        "Node": "gpu95",
        "Attempt": "2 of 3",
        "GPU-hours": "3.2 spent, 0.5 lost since the checkpoint of step 40",
        "Next": "not tried again: the same settings would end the same way",
        "You can": "lower micro_batch_size_per_gpu in the recipe",
        "Run": "scheduled__2026-11-25",
    }
    assert said["lines"] == ["step:41", "torch.OutOfMemoryError"]
    assert said["links"] == {
        "Log": "https://airflow.example.org/log",
        "Run": "https://airflow.example.org/dags/nightly/runs/scheduled__2026-11-25",
        "On the cluster": "/w/nightly/run/sft/attempt-2",
    }


def test_a_diagnosis_that_only_the_task_has_left_is_found(posts: Any) -> None:
    """The worker was killed: there is no exception."""
    occasions.failed(context(Ti(xcoms={"diagnosis": DIAGNOSIS}), None))
    assert posts[0][1]["facts"]["Class"] == "cuda_out_of_memory"
    occasions.failed(context(Ti(xcoms={"diagnosis": DIAGNOSIS}), RuntimeError("something else")))
    assert "Class" not in posts[1][1]["facts"]


def test_a_failure_without_a_diagnosis_says_what_its_exception_says(posts: Any) -> None:
    occasions.failed(context(Ti(xcoms={"slurm_job": {"directory": "/w/a"}}), RuntimeError("first\nsecond")))
    occasions.failed(context(Ti(), SlurmJobFailed(EVENT)))
    occasions.failed(context(Ti(), None))
    plain, slurm, nothing = (said for _, said in posts)
    assert plain["facts"]["What"] == "first" and plain["facts"]["Evidence"] == "second"
    assert plain["facts"]["Attempt"] == "1 of 3" and plain["links"]["On the cluster"] == "/w/a"
    assert "clear the task" in plain["facts"]["Next"]
    assert slurm["facts"]["Node"] == "gpu[94-95]"
    assert slurm["facts"]["Evidence"] == "torch.OutOfMemoryError"
    assert "GPU-hours" not in slurm["facts"]
    assert nothing["title"].startswith("[llm-bridge] nightly: sft.train failed")


def test_a_teardown_that_fell_with_another_task_is_not_told_again(posts: Any) -> None:
    down = Ti("ppo.ray_down", states={"ppo.wait": "failed", "merge.run": "upstream_failed"})
    occasions.failed(context(down, RuntimeError("not gone"), teardown=True))
    assert posts == []
    alone = Ti("ppo.ray_down", states={"ppo.wait": "success", "ppo.ray_down": "failed"})
    occasions.failed(context(alone, RuntimeError("not gone"), teardown=True))
    assert len(posts) == 1


def test_a_try_that_is_followed_by_another_says_so_on_request(include: Any, posts: Any) -> None:
    occasions.retried(context(Ti(), RuntimeError("node failed")))
    assert posts == []
    include(http={"conn_id": "hook"}, retries=True)
    occasions.retried(context(Ti(), RuntimeError("node failed")))
    assert "failed and is tried again" in posts[0][1]["title"]
    assert posts[0][1]["facts"]["Next"] == "it is tried again by itself"


HANG = {
    "for": "30 min", "limit_minutes": 30, "nodes": "gpu[94-95]", "step": "step 41", "ended": True,
    "stacks": [f"gpu94: frame {number}" for number in range(40)],
}  # fmt: skip


@pytest.mark.parametrize("retries", [False, True])
@pytest.mark.parametrize(
    ("callback", "occasion", "title"),
    [
        (occasions.retried, "hang", "sft.train hung, was ended for that and is tried again"),
        (occasions.failed, "failure", "sft.train failed"),
    ],
)
def test_a_job_that_was_ended_because_it_hung_is_one_message_with_what_follows(
    include: Any, posts: Any, mails: Any, retries: bool, callback: Any, occasion: str, title: str
) -> None:
    mail = {"conn_id": "mail", "sender": "a@example.org", "to": ["b@example.org"]}
    include(http={"conn_id": "hook"}, email=mail, retries=retries)
    error = SlurmJobFailed(EVENT | {"hang": HANG, "last_lines": [f"line {number}" for number in range(40)]})
    found = titled("hang", "hang: no output and no new step for 30 min, after step 41", next="what follows")
    error.diagnosis = found
    callback(context(Ti(), error))
    ((_, said),) = posts
    assert said["occasion"] == occasion and title in said["title"]
    assert said["facts"]["Evidence"] == found.evidence and said["facts"]["Next"] == "what follows"
    assert said["facts"]["Node"] == "gpu[94-95]"
    assert "line 39" in said["lines"] and "gpu94: frame 0" in said["lines"]
    (sent,) = mails
    assert title in sent["Subject"] and "gpu94: frame 0" in sent.get_body().get_content()


def test_a_hang_that_another_triggerer_ended_is_told_as_one(posts: Any) -> None:
    left = {"kind": "hang", "reason": "hang: no output and no new step for 30 min"}
    occasions.retried(context(Ti(), SlurmJobFailed(EVENT | {"reason": left})))
    ((_, said),) = posts
    assert said["occasion"] == "hang" and said["facts"]["Evidence"] == left["reason"]


def test_a_hang_that_was_only_reported_is_not_told_as_the_end_of_its_job(include: Any, posts: Any) -> None:
    """It has had its own message while the job went on."""
    occasions.retried(context(Ti(), SlurmJobFailed(EVENT | {"hang": HANG | {"ended": False}})))
    assert posts == []


def test_a_run_that_succeeds_after_it_had_failed_is_told_as_a_recovery_once(posts: Any) -> None:
    run = context(Ti("summary"), run_type="manual")
    occasions.run_failed(run)
    assert posts == []
    occasions.run_succeeded(run)
    ((_, said),) = posts
    assert said["occasion"] == "recovery" and "this run had failed on" in said["facts"]["Before"]
    occasions.run_succeeded(run)
    assert len(posts) == 1


@pytest.mark.parametrize(("state", "occasion"), [("failed", "recovery"), ("success", "success")])
def test_a_scheduled_run_tells_whether_the_one_before_it_had_failed(
    posts: Any, state: str, occasion: str
) -> None:
    before = SimpleNamespace(state=state, run_id="last night")
    occasions.run_succeeded(context(Ti("summary", previous=before)))
    assert [said["occasion"] for _, said in posts] == [occasion]


def test_a_success_says_what_was_made_and_how_long_it_took(posts: Any) -> None:
    model = {"repo_id": "me/llama", "url": "https://huggingface.co/me/llama"}
    summary = {"stages": [{"name": "sft", "run_s": 5400.0}, {"name": "ppo", "run_s": None}], "model": model}
    occasions.run_succeeded(context(Ti("summary", xcoms={"summary": summary})))
    said = posts[0][1]
    assert said["title"] == "[llm-bridge] nightly: succeeded"
    assert said["facts"]["Took"] == "3 h 0 min" and said["facts"]["Stages"] == "sft 1 h 30 min"
    assert said["facts"]["Model"] == "me/llama" and said["links"]["Model"] == model["url"]


@pytest.mark.parametrize(
    ("successes", "run_type", "told"),
    [
        ("scheduled", "manual", 0),
        ("all", "manual", 1),
        ("none", "scheduled", 0),
        ("scheduled", "backfill", 1),
    ],
)
def test_whose_success_is_told_can_be_chosen(
    include: Any, posts: Any, successes: str, run_type: str, told: int
) -> None:
    include(http={"conn_id": "hook"}, successes=successes)
    occasions.run_succeeded(context(Ti("summary"), run_type=run_type))
    assert len(posts) == told


async def test_a_late_run_is_told_unless_it_is_over(posts: Any) -> None:
    run = {"dag_id": "nightly", "dag_run_id": "r 1", "state": "running", "queued_at": "2026-11-25T22:00:00Z"}
    await late_run.late(hours=14, context={"dag_run": run})
    ((_, said),) = posts
    assert said["title"] == "[llm-bridge] nightly: not done after 14 h"
    assert said["links"]["Run"] == "https://airflow.example.org/dags/nightly/runs/r%201"
    # Airflow keeps the deadline of a run that has failed.
    await late_run.late(hours=14, context={"dag_run": run | {"state": "failed"}})
    assert len(posts) == 1


def test_the_example_in_the_alerts_file_is_right_and_off() -> None:
    text = (ROOT / "include" / "alerts.yaml").read_text()
    assert yaml.safe_load(text) is None
    example = [line[2:] for line in text.splitlines() if re.match(r"# (  )?\w+:( |$)", line)]
    alerts = Alerts.model_validate(yaml.safe_load("\n".join(example)))
    assert alerts.email and alerts.slack and alerts.http and alerts.apprise
    missing = [key for key in Alerts.model_fields if f"{key}:" not in text]
    assert not missing
    defaults = Alerts()
    for key in ("retries", "recoveries", "successes", "queued_after_hours"):
        assert getattr(alerts, key) == getattr(defaults, key), key
