"""The storm's verdict: what happened on the cluster against what should have."""

from __future__ import annotations

import re
from collections import defaultdict
from datetime import datetime

from testing.airflow_api import ENDED
from tests.chaos.ledger import Attempt, Job, Jobs, Ledger
from tests.chaos.load import Run

WORDS = (
    "doubled",
    "lost",
    "wrongly cancelled",
    "wrongly failed",
    "log lines lost",
    "log lines doubled",
    "log lines wrong",
)
# In the output of a job that slurmctld has started and, after a crash, believes to wait.
FORGOTTEN_START = "*** REASON: Nodes required for job are DOWN"
# Lines that a triggerer had read, but not yet written to its log file when it was stopped, are logged by the one that
# takes over, and written by itself when it continues. It may never continue: repeated lines are preferred to lost ones.
STALL_SECONDS = 10.0
REPEATED = "log lines repeated after a stall"


def judge(
    ledger: Ledger, runs: list[Run], stalls: list[float]
) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Return numbers, and each fault as a sentence by kind.

    :param stalls: when triggerers were stopped, in epoch seconds.
    """
    jobs = ledger.accounted()
    faults: dict[str, list[str]] = {word: [] for word in WORDS}
    by_key: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        by_key[job.key].append(job)
    numbers = dict.fromkeys(
        (
            "jobs submitted",
            "turned away",
            "new attempts",
            "lives",
            "forgotten by slurmctld, told by a sensor",
            REPEATED,
        ),
        0,
    ) | {"runs": len(runs)}
    for run in runs:
        attempts = ledger.attempts(run.name)
        numbers["new attempts"] += max(0, len(attempts) - 1)
        previous: tuple[Attempt, Job] | None = None
        for attempt in attempts:
            ours = by_key[attempt.owner["key"]]
            numbers["jobs submitted"] += len(ours)
            numbers["turned away"] += sum(not job.lives for job in ours if job.job_id != attempt.job_id)
            ran = [job for job in ours if job.lives]
            numbers["lives"] += sum(len(job.lives) for job in ran)
            faults["doubled"] += [
                f"{run.name}: {j.job_id} ran again when it was done" for j in ran if j.ran_after_done
            ]
            if len(ran) > 1:
                faults["doubled"].append(
                    f"{run.name}: {[job.job_id for job in ran]} ran as {attempt.folder.name}"
                )
            job = jobs.get(attempt)
            if job and previous:
                _compare(run, *previous, job, faults)
            if job and job.state == "CANCELLED" and not run.acted:
                faults["wrongly cancelled"].append(f"{run.name}: job {job.job_id}")
            previous = (attempt, job) if job else previous
            numbers[REPEATED] += _logs(ledger, run, attempt, job, stalls, faults)
        if _forgotten(run, attempts, jobs):
            numbers["forgotten by slurmctld, told by a sensor"] += 1
        else:
            _ending(run, attempts, jobs, faults)
    return numbers, faults


def _compare(run: Run, attempt: Attempt, before: Job, after: Job, faults: dict[str, list[str]]) -> None:
    if before.done and not run.cleared:
        faults["doubled"].append(
            f"{run.name}: job {after.job_id} after {before.job_id}, which had done it all"
        )
    began = min((life[0][1] for life in after.lives.values()), default=None)
    # By the job's own files: accounting has the end of a job that slurmctld forgot in a crash only much later.
    ended = max([attempt.alive_until, *(at for life in before.lives.values() for _, at in life)])
    if began and began < ended:
        faults["doubled"].append(
            f"{run.name}: job {after.job_id} began {ended - began:.1f} s before {before.job_id} ended"
        )


def _forgotten(run: Run, attempts: list[Attempt], jobs: Jobs) -> bool:
    """Return True if a sensor fails because slurmctld, killed within 5 s, has forgotten sbatch or the job's start.

    In the second case it ends the job with the reason for which it believes the job to wait. The job belongs to another
    task, which has ended: no sensor can submit it again.
    """
    if run.dag != "sensor" or run.state != "failed":
        return False
    last = jobs.get(attempts[-1]) if attempts else None
    ended = any(FORGOTTEN_START in line for line in attempts[-1].output.values()) if attempts else False
    return not (last and last.done) and (ended or not (last and last.state))


def _ending(run: Run, attempts: list[Attempt], jobs: Jobs, faults: dict[str, list[str]]) -> None:
    last = jobs.get(attempts[-1]) if attempts else None
    if run.state not in ENDED:
        faults["lost"].append(
            f"{run.name} is still {run.state}; its job {last and last.job_id} {last and last.state}"
        )
    elif not run.ended_by_user and run.state == "failed":
        word = "lost" if last and last.done else "wrongly failed"
        faults[word].append(f"{run.name} failed; its job {last and last.job_id} {last and last.state}")
    elif not run.ended_by_user and not (last and last.done):
        faults["lost"].append(
            f"{run.name} is said to be done; its job {last and last.job_id} {last and last.state}"
        )


def _logs(
    ledger: Ledger,
    run: Run,
    attempt: Attempt,
    job: Job | None,
    stalls: list[float],
    faults: dict[str, list[str]],
) -> int:
    """Add the faults of a task's logs; return how many lines were repeated because a triggerer was stopped."""
    # After the user has ended or cleared a task, its job is not followed any more.
    whole = bool(job and job.done) and not run.acted
    task = "sensor" if run.dag == "sensor" else "job"
    repeated = 0
    for fault in ledger.log_faults(run.name, attempt, task, whole=whole):
        word = "doubled" if ": twice: " in fault else "wrong" if " is not " in fault else "lost"
        if word == "doubled" and _just_before_a_stall(fault, stalls):
            repeated += 1
        else:
            faults[f"log lines {word}"].append(fault)
    return repeated


def _just_before_a_stall(fault: str, stalls: list[float]) -> bool:
    """Return True if a repeated line was printed or first logged just before a triggerer was stopped.

    A line may be logged long after it was printed: a worker that was killed resumes following later.
    """
    printed = re.search(r": twice: (\d+\.\d+) line ", fault)
    logged = re.search(r", first (\S+)$", fault)
    times = [float(printed[1])] if printed else []
    if logged:
        times.append(datetime.fromisoformat(logged[1]).timestamp())
    return any(0 <= stall - at <= STALL_SECONDS for at in times for stall in stalls)
