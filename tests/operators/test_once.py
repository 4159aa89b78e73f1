"""One attempt is one job, whatever happens on the way between Airflow and slurmctld."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.slurm.client import SlurmClient, _first_line
from llm_bridge.transport import LocalTransport

SHIM = """#!/bin/bash
{text}
"""


@pytest.fixture
def request_for(
    slurm: Any, site: dict[str, Any], request: pytest.FixtureRequest
) -> Callable[..., dict[str, Any]]:
    """A request to include/login/submit.py for a job that marks that it ran."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[-40:]

    def make(seconds: int = 0) -> dict[str, Any]:
        from llm_bridge.slurm import script
        from llm_bridge.slurm.job import SlurmJob

        stage = f"{slurm.workspace}/once/{name}"
        job = SlurmJob(
            cluster="test",
            script=f"#!/bin/bash\necho $SLURM_JOB_ID >> {stage}/ran\nsleep {seconds}\n",
            directory=stage,
        )
        directory = f"{stage}/attempt-1"
        files = script.files(job, Cluster(name="test", **site), directory)
        owner = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1}
        return {
            "directory": directory,
            "key": f"llmb-{name}-1",
            "owner": owner,
            "files": files,
            "secrets": {},
            "stage": None,
            "budget": None,
        }

    return make


@pytest.fixture
def helper(slurm: Any, site: dict[str, Any], tmp_path: Path) -> Callable[..., Any]:
    """Run a helper of include/login on the login node; `sbatch` may be another program there."""
    client = SlurmClient(Cluster(name="test", **site), LocalTransport())

    def run(name: str, request: dict[str, Any], sbatch: str = "") -> Any:
        argv = client.helper_argv
        if sbatch:
            shims = f"{slurm.workspace}/shims/{tmp_path.name}"
            path = f"{shims}:/usr/local/bin:/usr/bin:/bin"
            install = f"mkdir -p {shims}; cat > {shims}/sbatch; chmod 755 {shims}/sbatch"
            assert slurm.run("login", ["sh", "-c", install], input=SHIM.format(text=sbatch)).returncode == 0
            argv = ["env", f"PATH={path}", *argv]
        done = slurm.run("login", argv, user="svc", input=_first_line(name, request).decode())
        return json.loads(done.stdout) if done.stdout else done.returncode

    return run


def ran(request: dict[str, Any]) -> list[str]:
    """Ids of the jobs whose own work began."""
    mark = Path(request["directory"]).parent / "ran"
    return mark.read_text().split() if mark.exists() else []


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
    return value


def test_a_helper_killed_right_after_sbatch_leaves_one_job_that_the_next_call_finds(
    helper: Any, request_for: Any, jobs: Any
) -> None:
    request = request_for()
    code = helper("submit", request, sbatch='/usr/bin/sbatch "$@"; kill -9 $PPID')
    assert isinstance(code, int) and code != 0
    answer = helper("submit", request)
    assert answer["how"] == "found" and jobs(request["key"]) == [answer["job_id"]]
    until(lambda: ran(request) == [answer["job_id"]])


def test_a_second_call_waits_for_an_sbatch_whose_caller_was_killed(
    helper: Any, request_for: Any, jobs: Any
) -> None:
    request = request_for()
    assert isinstance(
        helper("submit", request, sbatch='kill -9 $PPID; sleep 2; exec /usr/bin/sbatch "$@"'), int
    )
    answer = helper("submit", request)
    time.sleep(3)  # by now the first sbatch is through in any case
    assert answer["how"] == "found" and jobs(request["key"]) == [answer["job_id"]]


def test_a_job_that_slurmctld_takes_after_sbatch_gave_up_does_no_work(
    helper: Any, request_for: Any, jobs: Any
) -> None:
    """`sbatch: Socket timed out` says nothing about whether the job will come."""
    request = request_for(seconds=1)
    late = """
( for fd in /proc/self/fd/*; do n=${fd##*/}; [ "$n" -gt 2 ] && eval "exec $n>&-"; done
  exec > /dev/null 2>&1; sleep 3; exec setsid /usr/bin/sbatch "$@" ) &
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1"""
    assert "Socket timed out" in helper("submit", request, sbatch=late)["error"]
    answer = helper("submit", request)
    assert answer["how"] == "submitted"
    until(lambda: len(jobs(request["key"])) == 2)
    log = Path(request["directory"], "output.log")
    until(lambda: "ends at once" in log.read_text())
    assert ran(request) == [answer["job_id"]]
    assert json.loads(Path(request["directory"], "outcome.json").read_text())["exit_code"] == 0


def test_calls_at_the_same_time_make_one_job(helper: Any, request_for: Any, jobs: Any) -> None:
    request = request_for()

    async def many() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(helper, "submit", request) for _ in range(5)))

    answers = asyncio.run(many())
    assert sorted(answer["how"] for answer in answers) == ["found"] * 4 + ["submitted"]
    assert {answer["job_id"] for answer in answers} == set(jobs(request["key"]))


def test_an_attempt_that_was_given_up_gets_no_job_any_more(helper: Any, request_for: Any, jobs: Any) -> None:
    """A worker that Airflow believes dead may still be about to submit."""
    request = request_for()
    stage = {"directory": str(Path(request["directory"]).parent), "close": True, "budget": None}
    Path(request["directory"]).mkdir(parents=True)
    Path(request["directory"]).chmod(0o777)
    assert helper("attempts", stage) == {"jobs": []}
    assert helper("submit", request) == {"how": "closed"}
    assert jobs(request["key"]) == []


def test_closing_names_also_a_job_whose_id_nobody_wrote_down(
    helper: Any, request_for: Any, slurm: Any
) -> None:
    request = request_for(seconds=30)
    assert isinstance(
        helper("submit", request, sbatch='/usr/bin/sbatch --begin=now+1hour "$@"; kill -9 $PPID'), int
    )
    stage = {"directory": str(Path(request["directory"]).parent), "close": True, "budget": None}
    found = helper("attempts", stage)["jobs"]
    assert [job["directory"] for job in found] == [request["directory"]]
    # It starts all the same, and finds that it was given up.
    slurm.run("ctl", ["scontrol", "update", f"JobId={found[0]['job_id']}", "StartTime=now"])
    until(lambda: "was given up" in log_of(request))
    assert ran(request) == []


def log_of(request: dict[str, Any]) -> str:
    log = Path(request["directory"], "output.log")
    return log.read_text() if log.exists() else ""
