"""How PPO comes by its nodes: queued behind SFT, or in SFT's own allocation; and what a failed SFT does in each.

SFT, merge and Ray's guard are stand-ins here that take no time; `make ray-report` runs the real ones in all three ways.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge import stages
from llm_bridge.failures.errors import SlurmJobFailed
from llm_bridge.plan import Plan, make_plan
from llm_bridge.ray.operators import RayClusterOperator
from llm_bridge.slurm.operators import SlurmSubmitOperator
from llm_bridge.slurm.teardown import SlurmCancelOperator

# Reads and leaves what the real one does; fails, or waits, as long as the file that its test made is there.
STAND_IN = """
import json, os, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
settings = json.loads(path.read_text())
test = pathlib.Path(settings["checkpoint_dir"]).parent
while (test / "PART.waits").exists():
    time.sleep(0.1)
if (test / "PART.fails").exists():
    sys.exit(3)
if os.environ.get("SLURM_NODEID", "0") == "0":
    made = pathlib.Path(settings["MADE"])
    made.mkdir(exist_ok=True)
    with open(made / "jobs", "a") as jobs:
        jobs.write(os.environ["SLURM_JOB_ID"] + " ")
    path.with_name("result.json").write_text(json.dumps({"part": "PART"}))
"""
GUARD = """
import json, os, time
with open(os.path.join(os.environ["ATTEMPT_DIR"], "cluster.json.tmp"), "w") as file:
    now = time.time()
    phases = dict.fromkeys(["allocated", "environment", "head_up", "workers_joined", "verified"], now)
    address = "http://127.0.0.1:8265"
    json.dump({"dashboard": address, "job_id": os.environ["SLURM_JOB_ID"], "phases": phases}, file)
os.rename(file.name, file.name[:-4])
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def stand_ins(include: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "include"
    shutil.copytree(include, folder)
    for part, made in {"sft": "checkpoint_dir", "merge": "output_dir"}.items():
        (folder / "jobs" / f"{part}.py").write_text(STAND_IN.replace("PART", part).replace("MADE", made))
    (folder / "jobs" / "ray_guard.py").write_text(GUARD)
    site = yaml.safe_load((folder / "clusters" / "test.yaml").read_text())
    (folder / "clusters" / "test.yaml").write_text(yaml.safe_dump(site | {"preflight": None}))
    recipe = yaml.safe_load((folder / "recipes" / "tiny_cpu.yaml").read_text())
    for mode in ("per_stage", "queue_ahead", "shared"):
        (folder / "recipes" / f"{mode}.yaml").write_text(yaml.safe_dump(recipe | {"allocation": mode}))
    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(folder))
    yield


class Run:
    """One run's SFT, merge and Ray cluster, as the pipeline wires them."""

    def __init__(self, slurm: Any, new_task: Callable[[str], Any], name: str, mode: str) -> None:
        self.slurm = slurm
        self.plan: Plan = make_plan({"recipe": mode, "cluster": "test"}, "tests", name)
        self.folder = Path(self.plan.stage_dir("sft"))
        slurm.run("login", ["mkdir", "-p", str(self.folder)], user="svc")
        self.train, self.merge, self.up = (new_task(f"{name}-{part}") for part in ("sft", "merge", "up"))

    def of(self, make: Callable[[Plan], Any]) -> Callable[[Any], Any]:
        return lambda context: make(self.plan)

    def train_operator(self) -> SlurmSubmitOperator:
        return SlurmSubmitOperator(task_id="t", job=self.of(stages.sft_in), then=self.of(stages.ray_ahead))

    def merge_operator(self) -> SlurmSubmitOperator:
        return SlurmSubmitOperator(task_id="m", job=self.of(stages.sft_merge))

    def up_operator(self) -> RayClusterOperator:
        key = {"per_stage": "none", "queue_ahead": "then", "shared": "slurm_job"}[self.plan.allocation]
        return RayClusterOperator(
            task_id="u", job=self.of(stages.ray_cluster), adopts=lambda context: self.train.xcoms.get(key)
        )

    def told(self, part: str, word: str, *, take_back: bool = False) -> None:
        """Make a part fail or wait, or no longer."""
        self.slurm.run("login", ["rm" if take_back else "touch", f"{self.folder}/{part}.{word}"], user="svc")

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
        stage = ("test", ppo, self.plan.ahead_dir, sft)
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


def test_a_cluster_queued_ahead_waits_for_sft_and_is_taken_over_when_it_has_ended_well(run: Any) -> None:
    it = run("queue_ahead")
    it.told("sft", "waits")
    it.train.start(it.train_operator())
    ahead = it.train.xcoms["then"]
    assert it.state(ahead["job_id"]) == "PENDING Dependency"
    again = it.train.start(it.train_operator())  # a worker died: nothing is queued twice
    assert (again.job_id, it.train.xcoms["then"]) == (it.train.xcoms["slurm_job"]["job_id"], ahead)
    it.told("sft", "waits", take_back=True)
    it.train.run(it.train_operator())
    it.merge.run(it.merge_operator())
    up = it.up.run(it.up_operator())
    assert (up["job_id"], up["directory"]) == (ahead["job_id"], f"{it.plan.ahead_dir}/attempt-1")
    assert up["result"]["job_id"] == ahead["job_id"]
    assert set(it.down()) >= {ahead["job_id"]}
    assert it.state(ahead["job_id"]).startswith("CANCELLED")


def test_a_cluster_queued_ahead_is_dropped_when_sft_fails_and_its_retry_queues_another(run: Any) -> None:
    it = run("queue_ahead")
    it.told("sft", "fails")
    with pytest.raises(SlurmJobFailed):
        it.train.run(it.train_operator())
    first = it.train.xcoms["then"]
    it.until(first["job_id"], "CANCELLED")
    it.told("sft", "fails", take_back=True)
    it.train.retry()
    it.train.run(it.train_operator())
    second = it.train.xcoms["then"]
    assert second["directory"] == f"{it.plan.ahead_dir}/attempt-2"
    it.merge.run(it.merge_operator())
    assert it.up.run(it.up_operator())["job_id"] == second["job_id"]


def test_a_cluster_queued_ahead_that_has_ended_since_is_followed_by_one_of_the_tasks_own(
    run: Any, slurm: Any
) -> None:
    it = run("queue_ahead")
    it.train.run(it.train_operator())
    it.merge.run(it.merge_operator())
    ahead = it.train.xcoms["then"]
    it.until(ahead["job_id"], "RUNNING")
    slurm.run("ctl", ["scancel", ahead["job_id"]])
    it.until(ahead["job_id"], "CANCELLED")
    up = it.up.run(it.up_operator())
    assert up["directory"] == f"{it.plan.stage_dir('ppo')}/attempt-1" and up["job_id"] != ahead["job_id"]


def test_a_clear_ends_a_cluster_that_was_taken_over_before_the_next_one_comes(run: Any) -> None:
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
    assert any("nothing to do" in line for line in logged())
    up = it.up.run(it.up_operator())
    assert {merged["job_id"], up["job_id"]} == {trained["job_id"]}
    assert merged["result"] == {"part": "merge"} and up["result"]["job_id"] == trained["job_id"]
    assert trained["job_id"] in it.down()
    assert it.state(trained["job_id"]).startswith("CANCELLED")
    # Cleared when all is over: the results count, however they were made.
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


def test_a_failed_sft_gives_a_shared_allocation_back_and_its_retry_gets_another(run: Any) -> None:
    it = run("shared")
    it.told("sft", "fails")
    with pytest.raises(SlurmJobFailed, match="exit code 3"):
        it.train.run(it.train_operator())
    first = it.train.xcoms["slurm_job"]["job_id"]
    it.until(first, "FAILED")
    it.told("sft", "fails", take_back=True)
    it.train.retry()
    trained = it.train.run(it.train_operator())
    it.merge.run(it.merge_operator())
    assert it.up.run(it.up_operator())["job_id"] == trained["job_id"] != first


def test_a_merge_that_fails_in_a_shared_allocation_is_made_by_its_own_task_and_ray_gets_its_own_nodes(
    run: Any,
) -> None:
    it = run("shared")
    it.told("merge", "fails")
    with pytest.raises(SlurmJobFailed):
        it.train.run(it.train_operator())
    it.told("merge", "fails", take_back=True)
    shared = it.train.xcoms["slurm_job"]["job_id"]
    it.train.retry()
    assert it.train.run(it.train_operator())["job_id"] == shared, "SFT's result is there"
    assert it.merge.run(it.merge_operator())["job_id"] != shared
    assert it.up.run(it.up_operator())["directory"] == f"{it.plan.stage_dir('ppo')}/attempt-1"
