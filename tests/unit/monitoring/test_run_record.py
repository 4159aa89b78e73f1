"""What the trigger stores for the run page; Airflow's API is replaced, tests/e2e uses the real one."""

from __future__ import annotations

import json
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.monitoring import run_record
from llm_bridge.monitoring.run_record import RunRecord
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.messages import Measures
from llm_bridge.slurm.events import EndReason
from llm_bridge.slurm.poller import JobUpdate
from llm_bridge.slurm.status import JobInfo

DIRECTORY = "/w/sft/attempt-1"


class Api:
    """The part of Airflow's XComs that the record uses."""

    def __init__(self) -> None:
        self.value: Any = None
        self.writes = 0
        self.error: Exception | None = None

    def set(self, key: str, value: Any, **ti: Any) -> None:
        if self.error:
            raise self.error
        self.value, self.writes = json.loads(json.dumps(value)), self.writes + 1

    def get_one(self, *, key: str, **ti: Any) -> Any:
        return self.value


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    api = Api()
    monkeypatch.setattr(run_record, "XCom", api)
    return api


def record(directory: str = DIRECTORY, **progress: float) -> RunRecord:
    ti = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1)
    trigger: Any = SimpleNamespace(task_instance=ti, log=logging.getLogger("trigger"))
    relay: Any = SimpleNamespace(progress=progress)
    return RunRecord(trigger, directory, relay)


def loss(step: int, value: float) -> dict[str, Measures]:
    line = json.dumps({"step": step, "data": {"train/loss": value}}) + "\n"
    return {attempt_dir.METRICS: Measures(line, 100 * step)}


async def test_a_pending_job_has_slurms_reason_and_the_estimate_of_its_start(api: Api) -> None:
    info = JobInfo("7", "PENDING", reason="Priority", submitted=1000.0, started=4600.0, waited=600)
    await record().take(JobUpdate(info=info))
    assert api.value["reason"] == "Priority"
    assert abs(api.value["expected_start"] - time.time() - 3000) < 600


async def test_a_job_that_runs_has_its_nodes_and_the_partition_that_slurm_chose(api: Api) -> None:
    started = {"job_id": "7", "started": 5.0, "nodes": "n2", "partition": "free"}
    await record().take(JobUpdate(files={attempt_dir.STARTED: started}))
    assert (api.value["nodes"], api.value["partition"], api.value["started"]) == ("n2", "free", 5.0)


async def test_updates_in_between_are_written_together_and_the_last_one_at_once(api: Api) -> None:
    kept = record(step=3, total=9)
    for step in range(1, 50):
        await kept.take(JobUpdate(measures=loss(step, 1 / step)))
    assert api.writes == 1
    await kept.take(
        JobUpdate(files={attempt_dir.OUTCOME: {"exit_code": 0, "ended": 9.0}}, end=EndReason.ENDED)
    )
    assert api.writes == 2
    assert (api.value["ended"], api.value["progress"]["total"]) == (9.0, 9)
    assert api.value["curves"]["train/loss"]["x"][-1] == 49


async def test_another_triggerer_continues_the_record_and_reads_on_where_it_ended(api: Api) -> None:
    await record().take(JobUpdate(measures=loss(1, 1.0)), last=True)
    second = record()
    assert await second.load() == {attempt_dir.METRICS: 100}
    await second.take(JobUpdate(measures=loss(2, 0.5)), last=True)
    assert api.value["curves"]["train/loss"]["x"] == [1, 2]


async def test_the_record_of_another_attempt_is_not_continued(api: Api) -> None:
    await record().take(JobUpdate(measures=loss(1, 1.0)), last=True)
    assert await record("/w/sft/attempt-2").load() == {}


async def test_the_use_of_a_ray_clusters_gpus_is_stored_with_the_ray_job(api: Api) -> None:
    kept = record()
    use = Measures('{"time": 5, "gpus": [{"percent": 80}]}\n', 40)
    await kept.take_gpu_use({"gpu_use/n1.jsonl": use, **loss(1, 1.0)})
    await kept.take(JobUpdate(), last=True)
    assert api.value["curves"] == {"gpu_use/n1/gpu_percent": {"x": [5.0], "y": [80.0], "stride": 1}}


async def test_an_airflow_that_does_not_answer_ends_no_trigger(api: Api) -> None:
    api.error = RuntimeError("API server restarts")
    await record().take(JobUpdate(measures=loss(1, 1.0)), last=True)
    assert api.value is None


async def test_lines_that_are_no_measures_hide_no_others(api: Api) -> None:
    wrong = [
        "[" * 100_000,
        '{"step": 1, "data": {"train/loss": 1' + "0" * 400 + "}}",
        '{"step": []}',
        "nan",
        "{",
    ]
    text = "\n".join([*wrong, '{"step": 2, "data": {"train/loss": 0.5}}', ""])
    await record().take(JobUpdate(measures={attempt_dir.METRICS: Measures(text, len(text))}), last=True)
    assert api.value["curves"] == {"train/loss": {"x": [2], "y": [0.5], "stride": 1}}


async def test_an_error_in_the_record_ends_no_trigger(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> bool:
        raise KeyError("x")

    monkeypatch.setattr("llm_bridge.monitoring.curves.Curves.read", fail)
    await record().take(JobUpdate(measures=loss(1, 1.0)), last=True)
    assert "the run page lacks a part of this job" in caplog.text
