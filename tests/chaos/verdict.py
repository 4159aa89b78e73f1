"""The storm's verdict: what happened on the cluster against what should have."""

from __future__ import annotations

from collections import defaultdict

from demo.airflow_api import ENDED
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


def judge(ledger: Ledger, runs: list[Run]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """(numbers, each fault as a sentence by kind)."""
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
            _logs(ledger, run, attempt, job, faults)
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
    # By the job's own words: accounting says much later when a job ended that slurmctld had forgotten in a crash.
    ended = max([attempt.alive_until, *(at for life in before.lives.values() for _, at in life)])
    if began and began < ended:
        faults["doubled"].append(
            f"{run.name}: job {after.job_id} began {ended - began:.1f} s before {before.job_id} ended"
        )


def _forgotten(run: Run, attempts: list[Attempt], jobs: Jobs) -> bool:
    """Whether a sensor fails as slurmctld, killed within 5 s of sbatch, does not know the job that it watches.

    The job belongs to another task, which has ended: no sensor can bring it back.
    """
    last = jobs.get(attempts[-1]) if attempts else None
    return run.dag == "sensor" and run.state == "failed" and not (last and (last.state or last.done))


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


def _logs(ledger: Ledger, run: Run, attempt: Attempt, job: Job | None, faults: dict[str, list[str]]) -> None:
    # Once the user has ended or cleared a task nobody follows its job any more.
    whole = bool(job and job.done) and not run.acted
    task = "sensor" if run.dag == "sensor" else "job"
    for fault in ledger.log_faults(run.name, attempt, task, whole=whole):
        word = "doubled" if ": twice: " in fault else "wrong" if " is not " in fault else "lost"
        faults[f"log lines {word}"].append(fault)
