"""The modes of allocation: PPO's Ray cluster is queued while SFT runs, or runs in SFT's job; and a failed SFT in each.

SFT, merge and the head guard are fast stand-ins here; `make ray-report` runs the real ones in all three modes.
"""

from __future__ import annotations

import io
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.operators.exceptions import SlurmJobFailed
from llm_bridge.operators.ray import RayClusterOperator
from llm_bridge.operators.slurm import (
    FOLLOWUP_XCOM,
    JOB_XCOM,
    SlurmCancelOperator,
    SlurmSubmitOperator,
)
from llm_bridge.pipeline import stages
from llm_bridge.pipeline.plan import Plan, make_plan
from llm_bridge.remote import node_archive

# Has the inputs and outputs of the real program; fails, or waits, while the file of that name exists.
STAND_IN = """
import json, os, pathlib, sys, time

def main():
    path = pathlib.Path(sys.argv[1])
    settings = json.loads(path.read_text())
    test = pathlib.Path(settings["checkpoint_dir"]).parent
    while (test / "PART.waits").exists():
        time.sleep(0.1)
    if (test / "PART.fails").exists():
        return 3
    if os.environ.get("SLURM_NODEID", "0") == "0":
        made = pathlib.Path(settings["MADE"])
        made.mkdir(exist_ok=True)
        with open(made / "jobs", "a") as jobs:
            jobs.write(os.environ["SLURM_JOB_ID"] + " ")
        path.with_name("result.json").write_text(json.dumps({"part": "PART"}))
"""
GUARD = """
import json, os, time

def main():
    with open(os.path.join(os.environ["ATTEMPT_DIR"], "cluster.json.tmp"), "w") as file:
        now = time.time()
        phases = dict.fromkeys(["allocated", "environment", "head_up", "workers_joined", "verified"], now)
        address = "http://127.0.0.1:8265"
        json.dump({"dashboard": address, "job_id": os.environ["SLURM_JOB_ID"], "phases": phases}, file)
    os.rename(file.name, file.name[:-4])
    time.sleep(600)
"""


def archive_with(programs: dict[str, str]) -> bytes:
    """Return the archive of programs with these modules of ``remote/node`` in place of its own."""
    own = zipfile.ZipFile(io.BytesIO(node_archive.build()))
    texts = {name: own.read(name) for name in own.namelist()}
    texts |= {f"llm_bridge/remote/node/{name}": text.encode() for name, text in programs.items()}
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    return target.getvalue()


@pytest.fixture(autouse=True)
def stand_ins(include: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "include"
    shutil.copytree(include, folder)
    programs = {"ray/head_guard.py": GUARD}
    for part, made in {"sft": "checkpoint_dir", "merge": "output_dir"}.items():
        programs[f"stages/{part}.py"] = STAND_IN.replace("PART", part).replace("MADE", made)
    archive = archive_with(programs)
    monkeypatch.setattr(node_archive, "build", lambda: archive)
    site = yaml.safe_load((folder / "clusters" / "test.yaml").read_text())
    (folder / "clusters" / "test.yaml").write_text(yaml.safe_dump(site | {"preflight": None}))
    recipe = yaml.safe_load((folder / "recipes" / "tiny_cpu.yaml").read_text())
    for mode in ("per_stage", "queue_ahead", "shared"):
        (folder / "recipes" / f"{mode}.yaml").write_text(yaml.safe_dump(recipe | {"allocation": mode}))
    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(folder))
    yield


class Run:
    """SFT, merge and Ray cluster of one run, wired as in the pipeline."""

    def __init__(self, slurm: Any, new_task: Callable[[str], Any], name: str, mode: str) -> None:
        self.slurm = slurm
        self.plan: Plan = make_plan({"recipe": mode, "cluster": "test"}, "tests", name)
        self.folder = Path(self.plan.stage_dir("sft"))
        slurm.run("login", ["mkdir", "-p", str(self.folder)], user="svc")
        self.train, self.merge, self.up = (new_task(f"{name}-{part}") for part in ("sft", "merge", "up"))

    def of(self, make: Callable[[Plan], Any]) -> Callable[[Any], Any]:
        return lambda context: make(self.plan)

    def train_operator(self) -> SlurmSubmitOperator:
        return SlurmSubmitOperator(
            task_id="t",
            job=self.of(stages.sft_job),
            followed_by=self.of(stages.prequeued_ray_cluster),
        )

    def merge_operator(self) -> SlurmSubmitOperator:
        return SlurmSubmitOperator(task_id="m", job=self.of(stages.sft_merge))

    def up_operator(self) -> RayClusterOperator:
        key = {"per_stage": "none", "queue_ahead": FOLLOWUP_XCOM, "shared": JOB_XCOM}[self.plan.allocation]
        return RayClusterOperator(
            task_id="u", job=self.of(stages.ray_cluster), adopt_from=lambda context: self.train.xcoms.get(key)
        )

    def set(self, part: str, what: str) -> None:
        """Make a part fail or wait: ``what`` is "fails" or "waits"."""
        self.slurm.run("login", ["touch", f"{self.folder}/{part}.{what}"], user="svc")

    def unset(self, part: str, what: str) -> None:
        """Undo :meth:`set`."""
        self.slurm.run("login", ["rm", f"{self.folder}/{part}.{what}"], user="svc")

    def state(self, job_id: str) -> str:
        argv = ["squeue", "-h", "-t", "all", "-o", "%T %r", "-j", job_id]
        return self.slurm.run("login", argv, user="svc").stdout.strip()

    def until(self, job_id: str, state: str) -> None:
        for _ in range(300):
            if self.state(job_id).startswith(state):
                return
            time.sleep(0.1)
        raise AssertionError(f"job {job_id} is {self.state(job_id)}, not {state}")

    def down(self) -> list[str]:
        ppo, sft = self.plan.stage_dir("ppo"), self.plan.stage_dir("sft")
        stage = ("test", ppo, self.plan.prequeued_dir, sft)
        return SlurmCancelOperator(task_id="d", stage=lambda context: stage).execute(self.up.context)


@pytest.fixture
def run(slurm: Any, new_task: Any, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Run]]:
    made = []

    def make(mode: str) -> Run:
        made.append(Run(slurm, new_task, request.node.name[:40], mode))
        return made[-1]

    yield make
    for each in made:
        each.down()


def test_a_prequeued_cluster_waits_for_sft_and_is_adopted_when_sft_has_succeeded(run: Any) -> None:
    it = run("queue_ahead")
    it.set("sft", "waits")
    it.train.start(it.train_operator())
    ahead = it.train.xcoms[FOLLOWUP_XCOM]
    assert it.state(ahead["job_id"]) == "PENDING Dependency"
    again = it.train.start(it.train_operator())  # as after a worker's death: nothing is queued twice
    assert (again.job_id, it.train.xcoms[FOLLOWUP_XCOM]) == (it.train.xcoms[JOB_XCOM]["job_id"], ahead)
    it.unset("sft", "waits")
    it.train.run(it.train_operator())
    it.merge.run(it.merge_operator())
    up = it.up.run(it.up_operator())
    assert (up["job_id"], up["directory"]) == (ahead["job_id"], f"{it.plan.prequeued_dir}/attempt-1")
    assert up["result"]["job_id"] == ahead["job_id"]
    assert set(it.down()) >= {ahead["job_id"]}
    assert it.state(ahead["job_id"]).startswith("CANCELLED")


def test_a_prequeued_cluster_is_cancelled_when_sft_fails_and_the_retry_queues_another(run: Any) -> None:
    it = run("queue_ahead")
    it.set("sft", "fails")
    with pytest.raises(SlurmJobFailed):
        it.train.run(it.train_operator())
    first = it.train.xcoms[FOLLOWUP_XCOM]
    it.until(first["job_id"], "CANCELLED")
    it.unset("sft", "fails")
    it.train.retry()
    it.train.run(it.train_operator())
    second = it.train.xcoms[FOLLOWUP_XCOM]
    assert second["directory"] == f"{it.plan.prequeued_dir}/attempt-2"
    it.merge.run(it.merge_operator())
    assert it.up.run(it.up_operator())["job_id"] == second["job_id"]


def test_a_prequeued_cluster_that_has_ended_is_replaced_by_one_of_the_tasks_own(run: Any, slurm: Any) -> None:
    it = run("queue_ahead")
    it.train.run(it.train_operator())
    it.merge.run(it.merge_operator())
    ahead = it.train.xcoms[FOLLOWUP_XCOM]
    it.until(ahead["job_id"], "RUNNING")
    slurm.run("ctl", ["scancel", ahead["job_id"]])
    it.until(ahead["job_id"], "CANCELLED")
    up = it.up.run(it.up_operator())
    assert up["directory"] == f"{it.plan.stage_dir('ppo')}/attempt-1" and up["job_id"] != ahead["job_id"]


def test_a_clear_cancels_an_adopted_cluster_before_the_next_one_starts(run: Any) -> None:
    it = run("queue_ahead")
    it.train.run(it.train_operator())
    it.merge.run(it.merge_operator())
    first = it.up.run(it.up_operator())
    it.up.clear()
    second = it.up.run(it.up_operator())
    assert it.state(first["job_id"]).startswith("CANCELLED")
    assert second["directory"] == f"{it.plan.stage_dir('ppo')}/attempt-1"


def test_sft_its_merge_and_ray_share_one_allocation(run: Any, logged: Any) -> None:
    it = run("shared")
    trained = it.train.run(it.train_operator())
    assert (trained["state"], trained["result"]) == ("RUNNING", {"part": "sft"})
    merged = it.merge.run(it.merge_operator())
    assert any("nothing to do: reusing the result" in line for line in logged())
    up = it.up.run(it.up_operator())
    assert {merged["job_id"], up["job_id"]} == {trained["job_id"]}
    assert merged["result"] == {"part": "merge"} and up["result"]["job_id"] == trained["job_id"]
    assert trained["job_id"] in it.down()
    assert it.state(trained["job_id"]).startswith("CANCELLED")
    # Cleared at the end: the results are reused, whichever mode made them.
    it.train.clear()
    again = it.train.run(it.train_operator())
    assert (again["job_id"], again["state"]) == (trained["job_id"], "COMPLETED")
    other_mode = it.plan.model_copy(
        update={"recipe": it.plan.recipe.model_copy(update={"allocation": "per_stage"})}
    )
    it.plan = other_mode
    it.train.clear()
    assert it.train.run(it.train_operator())["job_id"] == trained["job_id"]
    assert it.merge.run(it.merge_operator())["job_id"] == trained["job_id"]


def test_a_failed_sft_ends_a_shared_allocation_and_its_retry_gets_another(run: Any) -> None:
    it = run("shared")
    it.set("sft", "fails")
    with pytest.raises(SlurmJobFailed, match="exit code 3"):
        it.train.run(it.train_operator())
    first = it.train.xcoms[JOB_XCOM]["job_id"]
    it.until(first, "FAILED")
    it.unset("sft", "fails")
    it.train.retry()
    trained = it.train.run(it.train_operator())
    it.merge.run(it.merge_operator())
    assert it.up.run(it.up_operator())["job_id"] == trained["job_id"] != first


def test_a_merge_that_fails_in_a_shared_allocation_runs_again_in_its_own_task_and_ray_gets_its_own_nodes(
    run: Any,
) -> None:
    it = run("shared")
    it.set("merge", "fails")
    with pytest.raises(SlurmJobFailed):
        it.train.run(it.train_operator())
    it.unset("merge", "fails")
    shared = it.train.xcoms[JOB_XCOM]["job_id"]
    it.train.retry()
    assert it.train.run(it.train_operator())["job_id"] == shared, "SFT's result exists"
    assert it.merge.run(it.merge_operator())["job_id"] != shared
    assert it.up.run(it.up_operator())["directory"] == f"{it.plan.stage_dir('ppo')}/attempt-1"
