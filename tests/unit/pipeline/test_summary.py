"""The summary of a run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from llm_bridge.config.loader import load_cluster
from llm_bridge.operators.slurm import JOB_XCOM
from llm_bridge.pipeline import summary
from llm_bridge.pipeline.approval import GATE
from llm_bridge.pipeline.plan import make_plan
from llm_bridge.pipeline.summary import SummaryOperator
from llm_bridge.ray.startup_timing import describe, seconds
from llm_bridge.remote.messages import AttemptJob
from llm_bridge.slurm.accounting import Accounting
from llm_bridge.slurm.status import JobInfo

# As in `cluster.json`; the order of JSON keys is not reliable.
PHASES = {
    "verified": 107.06,
    "allocated": 100.0,
    "environment": 100.4,
    "head_up": 104.0,
    "workers_joined": 107.0,
}


def test_the_summary_of_a_run_has_the_changes_of_the_form_and_the_phases_of_the_ray_clusters_start(
    include: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (include / "clusters" / "here.yaml").write_text("ssh_conn_id: null\nworkspace: /w\ngpus_per_node: 8\n")
    check = {"cluster": "here", "changes": ["ppo.optim.lr: 1 -> 2"]}
    tuning = {"text": "100 tokens/s now, 200 tokens/s with: a: 1", "applied": False}
    trained = {"result": {"step": 58, "tuning": tuning}}
    pulled = {"check": check, "ppo.ray_up": {"result": {"phases": PHASES}}, "sft.train": trained}
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="d",
        run_id="r",
        task_id="summary",
        get_previous_dagrun=lambda state: None,
        xcom_pull=lambda task_ids, key="return_value": (
            pulled.get(task_ids) if key == "return_value" else None
        ),
        xcom_push=lambda key, value: pushed.__setitem__(key, value),
        get_task_states=lambda **which: {"r": dict.fromkeys(which["task_ids"], "success")},
    )
    SummaryOperator(task_id="summary").execute({"ti": ti})  # type: ignore[typeddict-item]
    assert pushed["summary"]["ray_phases_s"] == seconds(PHASES)
    log = capsys.readouterr().out
    assert f"ray cluster: {describe(PHASES)}" in log
    assert "changed against the recipe: ppo.optim.lr: 1 -> 2" in log
    assert pushed["summary"]["changes"] == check["changes"]
    assert "settings of SFT: 100 tokens/s now, 200 tokens/s with: a: 1" in log
    assert pushed["summary"]["tuning"] == tuning


@pytest.mark.parametrize("by", [GATE, "upload.run"])
@pytest.mark.parametrize(
    ("upload", "refused"), [("skipped", "not published because of x"), ("upstream_failed", None)]
)
def test_a_run_whose_model_is_refused_succeeds_and_says_why(
    include: Path, capsys: pytest.CaptureFixture[str], upload: str, refused: str | None, by: str
) -> None:
    """The decision of an earlier try is not the reason of an upload that did not run because of a failure."""
    (include / "clusters" / "here.yaml").write_text("ssh_conn_id: null\nworkspace: /w\ngpus_per_node: 8\n")
    reason = "not published because of x"
    pulled: dict[tuple[str, str], Any] = {("check", "return_value"): {"cluster": "here"}}
    if by == GATE:
        pulled[GATE, "return_value"] = {"publish": False, "reason": reason}
    elif refused:
        pulled[by, "not_published"] = reason
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="d",
        run_id="r",
        task_id="summary",
        get_previous_dagrun=lambda state: None,
        xcom_pull=lambda task_ids, key="return_value", **_: pulled.get((task_ids, key)),
        xcom_push=lambda key, value: pushed.__setitem__(key, value),
        get_task_states=lambda **which: {
            "r": {**dict.fromkeys(which["task_ids"], "success"), "upload.run": upload}
        },
    )
    task = SummaryOperator(task_id="summary")
    if refused:
        task.execute({"ti": ti})  # type: ignore[typeddict-item]
    else:
        with pytest.raises(AirflowFailException, match=r"the run failed in upload\.run"):
            task.execute({"ti": ti})  # type: ignore[typeddict-item]
    assert pushed["summary"]["refused"] == refused and pushed["summary"]["model"] is None
    assert ("not published because of x" in capsys.readouterr().out) is bool(refused)


def test_the_scores_of_the_run_before_come_with_what_they_depend_on() -> None:
    evaluation = {
        **{"metric": "m", "rows": 4, "conditions": "c", "data": {"hash": "d"}},
        "models": {"sft": {"score": 0.5}},
    }
    ti = SimpleNamespace(
        get_previous_dagrun=lambda state: SimpleNamespace(run_id="monday"),
        xcom_pull=lambda **which: {"run_id": which["run_id"], "evaluation": evaluation},
    )
    dependencies = {"metric": "m", "rows": 4, "conditions": "c", "data_hash": "d"}
    assert summary._previous(ti) == {"run_id": "monday", "scores": {"sft": 0.5}, **dependencies}


async def test_a_row_has_the_times_of_the_runs_own_job_and_not_of_one_that_got_its_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {"prepare.run": ("9", "/w/prepare/attempt-1"), "sft.train": ("9", "/w/sft/attempt-1")}
    infos = {directory: JobInfo("9", "COMPLETED", directory=directory) for _, directory in own.values()}

    class Client:
        """Slurm after a crash, where both jobs have the id 9 and squeue lists the second one."""

        async def find(self, job_ids: Any, directories: dict[str, str]) -> dict[str, JobInfo]:
            return {"9": infos["/w/sft/attempt-1"]}

        async def look_up(self, job_id: str, directory: str) -> JobInfo | None:
            return infos[directory]

        async def list_attempts(self, stage: str, close: bool) -> list[AttemptJob]:
            assert close
            return [AttemptJob("9", f"{stage}/attempt-1")]

        async def seconds_by_files(self, directory: str) -> float | None:
            assert directory == "/w/prepare/attempt-1", "accounting has the other one"
            return 45.0

        async def usage(self, jobs: list[AttemptJob]) -> dict[str, Accounting]:
            assert [job.directory for job in jobs] == ["/w/prepare/attempt-1", "/w/sft/attempt-1"]
            return {"/w/sft/attempt-1": Accounting("COMPLETED", elapsed=60, cpus=2, cpu_seconds=30)}

    @asynccontextmanager
    async def open_client(cluster: str) -> AsyncIterator[Client]:
        yield Client()

    monkeypatch.setattr(summary, "open_client", open_client)

    def pull(task_ids: str, key: str) -> Any:
        found = own.get(task_ids) if key == JOB_XCOM else None
        return {"job_id": found[0], "directory": found[1]} if found else None

    operator = SummaryOperator(task_id="summary")
    ti = SimpleNamespace(xcom_pull=pull)
    states, efficiency, ran = await operator._job_states({"cluster": "here"}, ti)
    assert ran == [("prepare", 45.0), ("sft", 60.0)]
    assert {task: info.directory for task, info in states.items()} == {
        task: directory for task, (_, directory) in own.items()
    }
    assert efficiency == [{"job_id": "9", "directory": "/w/sft/attempt-1", "cpu_percent": 25, "run_s": 60}]


async def test_the_gpu_hours_of_a_run_are_those_of_all_attempts(
    include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SFT lost a node, was requeued by Slurm, and succeeded; the Ray cluster ends in a long epilog."""
    plan = make_plan({"recipe": "tiny_cpu", "cluster": "local"}, "d", "r")
    sft, ppo = plan.stage_dir("sft"), plan.stage_dir("ppo")
    jobs = {"sft.train": ("8", f"{sft}/attempt-2"), "ppo.ray_up": ("9", f"{ppo}/attempt-1")}
    records = {
        f"{sft}/attempt-1": Accounting("NODE_FAIL", elapsed=1800),
        f"{sft}/attempt-2": Accounting(
            "COMPLETED", elapsed=3600, earlier=("REQUEUED",), earlier_seconds=1800
        ),
        f"{ppo}/attempt-1": Accounting("RUNNING", elapsed=99999),
    }

    class Client:
        """Slurm with accounting, which has not recorded the end of job 9."""

        async def find(self, job_ids: Any, directories: dict[str, str]) -> dict[str, JobInfo]:
            return {"8": JobInfo("8", "COMPLETED"), "9": JobInfo("9", "COMPLETING")}

        async def look_up(self, job_id: str, directory: str) -> JobInfo:
            return JobInfo("9", "COMPLETING", started=1000.0)

        async def list_attempts(self, stage: str, close: bool) -> list[AttemptJob]:
            return [AttemptJob(name[-1], name) for name in records if name.startswith(f"{stage}/")]

        async def seconds_by_files(self, directory: str) -> float | None:
            return 900.0 if directory == f"{ppo}/attempt-1" else None

        async def usage(self, jobs: list[AttemptJob]) -> dict[str, Accounting]:
            return records

    @asynccontextmanager
    async def open_client(cluster: str) -> AsyncIterator[Client]:
        yield Client()

    def pull(task_ids: str, key: str) -> Any:
        found = jobs.get(task_ids) if key == JOB_XCOM else None
        return {"job_id": found[0], "directory": found[1]} if found else None

    monkeypatch.setattr(summary, "open_client", open_client)
    operator = SummaryOperator(task_id="summary")
    states, _, ran = await operator._job_states(plan.model_dump(mode="json"), SimpleNamespace(xcom_pull=pull))
    assert sorted(ran) == [("ppo", 900.0), ("sft", 1800.0), ("sft", 5400.0)]
    gpus = plan.nodes("sft") * plan.gpus_per_node("sft", load_cluster("local"))
    assert gpus and summary.gpu_hours(plan, ran) == pytest.approx(gpus * (2.0 + 0.25))
    monkeypatch.setattr(summary, "cancel_and_wait", None)
    operator._cancel_left_over({"cluster": "local"}, states)  # Slurm ends job 9 by itself
