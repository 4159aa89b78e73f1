"""One attempt is one job, whatever fails between Airflow and slurmctld."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.remote import attempt_dir, helpers, messages
from llm_bridge.remote.messages import AttemptsAnswer, AttemptsRequest, SubmitAnswer, SubmitRequest
from llm_bridge.slurm import batch_script
from llm_bridge.slurm.spec import SlurmJob
from testing.waiting import until

SHIM = """#!/bin/bash
{text}
"""
# Class of a request -> the helper that takes it, and the class of its answer.
HELPERS: dict[type, tuple[str, type]] = {
    SubmitRequest: ("submit", SubmitAnswer),
    AttemptsRequest: ("list_attempts", AttemptsAnswer),
}


@pytest.fixture
def request_for(
    slurm: Any, site: dict[str, Any], request: pytest.FixtureRequest
) -> Callable[..., SubmitRequest]:
    """Make a request to the submitting helper for a job that records that it ran."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[-40:]

    def make(seconds: int = 0) -> SubmitRequest:
        stage = f"{slurm.workspace}/once/{name}"
        job = SlurmJob(
            cluster="test",
            script=f"#!/bin/bash\necho $SLURM_JOB_ID >> {stage}/ran\nsleep {seconds}\n",
            directory=stage,
        )
        directory = f"{stage}/attempt-1"
        files = batch_script.files(job.resolve(Cluster(name="test", **site)), directory)
        owner = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1}
        return SubmitRequest(directory, f"llmb-{name}-1", files=files.texts, owner=owner)

    return make


@pytest.fixture
def helper(slurm: Any, site: dict[str, Any], tmp_path: Path) -> Callable[..., Any]:
    """Run a helper on the login node, with another program as ``sbatch`` if one is given.

    Returns the helper's answer, or its exit code if it printed none.
    """
    login_python = Cluster(name="test", **site).login_python

    def run(request: SubmitRequest | AttemptsRequest, sbatch: str = "") -> Any:
        name, answer = HELPERS[type(request)]
        argv = helpers.argv(login_python)
        if sbatch:
            shims = f"{slurm.workspace}/shims/{tmp_path.name}"
            path = f"{shims}:/usr/local/bin:/usr/bin:/bin"
            install = f"mkdir -p {shims}; cat > {shims}/sbatch; chmod 755 {shims}/sbatch"
            assert slurm.run("login", ["sh", "-c", install], input=SHIM.format(text=sbatch)).returncode == 0
            argv = ["env", f"PATH={path}", *argv]
        stdin = helpers.first_line(name, messages.encode(request)).decode()
        done = slurm.run("login", argv, user="svc", input=stdin)
        return messages.decode(answer, json.loads(done.stdout)) if done.stdout else done.returncode

    return run


def ran(request: SubmitRequest) -> list[str]:
    """Return the ids of the jobs whose own script ran."""
    mark = Path(request.directory).parent / "ran"
    return mark.read_text().split() if mark.exists() else []


def test_a_helper_killed_right_after_sbatch_leaves_one_job_that_the_next_call_finds(
    helper: Any, request_for: Any, jobs: Any
) -> None:
    request = request_for()
    code = helper(request, sbatch='/usr/bin/sbatch "$@"; kill -9 $PPID')
    assert isinstance(code, int) and code != 0
    answer = helper(request)
    assert answer.status == messages.FOUND and jobs(request.key) == [answer.job_id]
    until(lambda: ran(request) == [answer.job_id])


def test_a_second_call_waits_for_an_sbatch_whose_caller_was_killed(
    helper: Any, request_for: Any, jobs: Any
) -> None:
    request = request_for()
    assert isinstance(helper(request, sbatch='kill -9 $PPID; sleep 2; exec /usr/bin/sbatch "$@"'), int)
    answer = helper(request)
    time.sleep(3)  # the first sbatch has ended by now in any case
    assert answer.status == messages.FOUND and jobs(request.key) == [answer.job_id]


def test_a_job_that_slurmctld_accepts_after_sbatch_failed_does_no_work(
    helper: Any, request_for: Any, jobs: Any
) -> None:
    """After `sbatch: Socket timed out` the job may still start."""
    request = request_for(seconds=1)
    late = """
( for fd in /proc/self/fd/*; do n=${fd##*/}; [ "$n" -gt 2 ] && eval "exec $n>&-"; done
  exec > /dev/null 2>&1; sleep 3; exec setsid /usr/bin/sbatch "$@" ) &
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1"""
    refused = helper(request, sbatch=late)
    assert refused.status == messages.REFUSED and "Socket timed out" in refused.message
    answer = helper(request)
    assert answer.status == messages.SUBMITTED
    until(lambda: len(jobs(request.key)) == 2)
    log = Path(request.directory, "output.log")
    until(lambda: "ends at once" in log.read_text())
    assert ran(request) == [answer.job_id]
    assert json.loads(Path(request.directory, "outcome.json").read_text())["exit_code"] == 0


def test_calls_at_the_same_time_make_one_job(helper: Any, request_for: Any, jobs: Any) -> None:
    request = request_for()

    async def many() -> list[Any]:
        return await asyncio.gather(*(asyncio.to_thread(helper, request) for _ in range(5)))

    answers = asyncio.run(many())
    assert sorted(answer.status for answer in answers) == [messages.FOUND] * 4 + [messages.SUBMITTED]
    assert {answer.job_id for answer in answers} == set(jobs(request.key))


def test_a_closed_attempt_gets_no_job(helper: Any, request_for: Any, jobs: Any) -> None:
    """A worker that Airflow considers dead may still be about to submit."""
    request = request_for()
    closing = AttemptsRequest(str(Path(request.directory).parent), close=True)
    Path(request.directory).mkdir(parents=True)
    Path(request.directory).chmod(0o777)
    assert helper(closing) == AttemptsAnswer([])
    assert helper(request).status == messages.CLOSED
    assert jobs(request.key) == []


def test_closing_also_returns_a_job_whose_id_was_never_recorded(
    helper: Any, request_for: Any, slurm: Any
) -> None:
    request = request_for(seconds=30)
    assert isinstance(helper(request, sbatch='/usr/bin/sbatch --begin=now+1hour "$@"; kill -9 $PPID'), int)
    closing = AttemptsRequest(str(Path(request.directory).parent), close=True)
    found = helper(closing).jobs
    assert [job.directory for job in found] == [request.directory]
    # It starts nevertheless, and finds that its attempt is closed.
    slurm.run("ctl", ["scontrol", "update", f"JobId={found[0].job_id}", "StartTime=now"])
    until(lambda: "or it was closed" in log_of(request))
    assert ran(request) == []


@pytest.mark.parametrize(
    "around",
    [
        'echo "Welcome: 3 news"; {sbatch}',
        '{sbatch}; echo "12 jobs of yours wait"',
        "echo; {sbatch} | sed 's/$/;here/'",
    ],
)
def test_the_id_is_read_from_among_other_output_of_a_sites_sbatch(
    helper: Any, request_for: Any, jobs: Any, around: str
) -> None:
    request = request_for()
    answer = helper(request, sbatch=around.format(sbatch='/usr/bin/sbatch "$@"'))
    assert (answer.status, [answer.job_id]) == (messages.SUBMITTED, jobs(request.key))
    until(lambda: ran(request) == [answer.job_id])


def test_a_job_whose_id_sbatch_does_not_print_is_found_by_its_name(
    helper: Any, request_for: Any, jobs: Any
) -> None:
    request = request_for()
    answer = helper(request, sbatch='/usr/bin/sbatch "$@" > /dev/null; echo Submitted')
    assert [answer.job_id] == jobs(request.key)
    until(lambda: ran(request) == [answer.job_id])


def test_an_sbatch_that_prints_no_id_and_makes_no_job_is_quoted_and_the_next_call_submits(
    helper: Any, request_for: Any, jobs: Any
) -> None:
    request = request_for()
    answer = helper(request, sbatch="seq -f 'line %g' 999; echo Come back on Monday; echo 0")
    assert answer.status == messages.UNREAD
    assert "Come back on Monday" in answer.message and request.key in answer.message
    assert len(answer.message) < 800
    answer = helper(request)
    assert answer.status == messages.SUBMITTED and [answer.job_id] == jobs(request.key)


@pytest.mark.parametrize("held", ["", "Welcome\n", "Welcome\n{job_id}\n", "{job_id};here\n"])
def test_a_job_does_its_work_whatever_else_is_in_the_file_with_its_id(
    helper: Any, request_for: Any, slurm: Any, held: str
) -> None:
    request = request_for()
    job_id = helper(request, sbatch='/usr/bin/sbatch --hold "$@"').job_id
    Path(request.directory, attempt_dir.JOB_ID).write_text(held.format(job_id=job_id))
    slurm.run("ctl", ["scontrol", "release", job_id])
    until(lambda: ran(request) == [job_id])
    closing = AttemptsRequest(str(Path(request.directory).parent), close=True)
    assert [job.job_id for job in helper(closing).jobs] == [job_id]


def test_a_job_that_cannot_determine_whether_it_is_the_attempts_job_fails_with_that_reason(
    helper: Any, request_for: Any, slurm: Any
) -> None:
    request = request_for()
    job_id = helper(request, sbatch='/usr/bin/sbatch --hold "$@"').job_id
    for name in attempt_dir.JOB_ID_CLAIMS:
        Path(request.directory, name).write_text("Welcome\n")
    slurm.run("ctl", ["scontrol", "release", job_id])
    ask = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id]
    until(lambda: slurm.run("login", ask, user="svc").stdout.strip() == "FAILED")
    assert "no Slurm job id in" in log_of(request) and ran(request) == []


def test_the_test_of_a_job_passes_the_same_options_and_script_to_sbatch_as_its_submission(
    helper: Any, request_for: Any, tmp_path: Path, slurm: Any
) -> None:
    """A stand-in for sbatch keeps its options and the script."""
    request = request_for()
    kept = slurm.workspace / f"kept-{tmp_path.name}"
    kept.mkdir()
    kept.chmod(0o777)
    keep = f"""
for last; do :; done
if [ -f "$last" ]; then call=submitted script=$(cat "$last"); set -- "${{@:1:$#-1}}"; else call=tested script=$(cat); fi
printf '%s\\n' "$@" "$script" | grep -vx -- --test-only > {kept}/$call
echo 12"""
    assert helper(request._replace(test_only=True), sbatch=keep).status == messages.FITS
    assert not Path(request.directory).exists()
    assert helper(request, sbatch=keep).job_id == "12"
    assert (kept / "tested").read_text() == (kept / "submitted").read_text() != ""


def log_of(request: SubmitRequest) -> str:
    log = Path(request.directory, "output.log")
    return log.read_text() if log.exists() else ""
