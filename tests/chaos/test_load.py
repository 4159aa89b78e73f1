"""What many jobs, and loud ones, cost the site and Airflow."""

from __future__ import annotations

import re
import time
from datetime import datetime

import pytest

from testing import processes
from testing.waiting import until
from tests.chaos.stack import ChaosStack

JOBS, SECONDS = 40, 120
# What squeue and sacct ask; squeue asks for the partitions, too, in the same call of the program.
POLLING = ("REQUEST_JOB_INFO", "REQUEST_JOB_INFO_SINGLE", "DBD_GET_JOBS_COND")


def polling_calls(stack: ChaosStack) -> int:
    """How often slurmctld and slurmdbd were asked for jobs, by their own count."""
    said = stack.slurm("sdiag") + stack.cluster.run("ctl", ["sacctmgr", "show", "stats"]).stdout
    return sum(
        int(count)
        for name, count in re.findall(r"^\t(\w+) .*?count:(\d+)", said, re.MULTILINE)
        if name in POLLING
    )


@pytest.mark.long
def test_forty_jobs_cost_at_most_four_polling_calls_a_minute_and_are_shown_within_two_seconds(
    stack: ChaosStack,
) -> None:
    runs = [f"load-{n}" for n in range(JOBS)]
    for run in runs:
        stack.trigger("storm", run, lines=600, pause=2)
    stack.deferred("storm", *runs)
    time.sleep(40)  # for so long slurmctld is asked more often about jobs that have just come
    before, begin = polling_calls(stack), time.time()
    time.sleep(SECONDS)
    calls = polling_calls(stack) - before
    late = []
    for run in runs:
        for row in stack.ledger.rows(run):
            wrote = re.match(r"(\d+\.\d+) line", row.text)
            if wrote and float(wrote[1]) > begin:
                late.append(datetime.fromisoformat(row.time).timestamp() - float(wrote[1]))
        stack.mark("storm", run, "success", "job")
    until(lambda: not stack.slurm("squeue", "-h").strip(), 120)
    late.sort()
    print(f"{calls} polling calls in {SECONDS} s; {len(late)} lines, half within {late[len(late) // 2]:.2f} s, "
          f"99 of 100 within {late[len(late) * 99 // 100]:.2f} s, all within {late[-1]:.2f} s")  # fmt: skip
    assert 0 < calls <= 4 * SECONDS / 60
    assert len(late) > JOBS * SECONDS / 2 * 0.8
    assert late[len(late) * 99 // 100] <= 2.0


def test_a_job_that_writes_100_mb_does_not_flood_airflow(stack: ChaosStack, run: str) -> None:
    before = processes.memory(stack.airflow.processes())
    watch = processes.MemoryWatch(stack.airflow.processes, every=1)
    watch.start()
    stack.trigger("job", run, lines=1, flood_mb=100)
    assert stack.finished("job", run) == {run: "success"}
    more = watch.stop() - before
    rows = stack.ledger.rows(run)
    shown = [row for row in rows if row.part]
    (attempt,) = stack.ledger.attempts(run)
    size = (attempt.folder / "output.log").stat().st_size
    said = [row.text for row in rows if "of output skipped here" in row.text]
    logs = sum(file.stat().st_size for file in stack.ledger.trigger_logs(run))
    print(
        f"{size / 1e6:.0f} MB written, {len(shown)} lines in {logs / 1e6:.0f} MB of log, {more / 1e6:.0f} MB of memory"
    )
    assert size > 100e6 and logs < 40e6 and more < 300e6
    assert said and str(attempt.folder / "output.log") in said[0]
    assert shown[-1].end == size, "the end of the output is shown in any case"
