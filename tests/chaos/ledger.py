"""What truly happened: from the jobs' own ledger, from accounting, and from Airflow's log files.

None of it goes through llm-bridge. The ledger is a file to which every job adds a line as its user code begins and ends
(dags/job.sh).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from testing.local_cluster import LocalCluster

RAN_AGAIN = "ends at once: it was done before"


@dataclass
class Job:
    """One Slurm job that ran user code."""

    job_id: str
    key: str
    # restart count -> lines of that life: (event, time)
    lives: dict[int, list[tuple[str, float]]] = field(default_factory=lambda: defaultdict(list))
    state: str = ""
    started: str = ""
    ended: str = ""

    @property
    def ran_after_done(self) -> bool:
        """Whether Slurm ran it again when its work was finished."""
        said = [(at, word) for life in self.lives.values() for word, at in life]
        done = min((at for at, word in said if word == "done"), default=None)
        return done is not None and any(word == "began" and at > done for at, word in said)

    @property
    def done(self) -> bool:
        """Whether its work was finished."""
        return any(word == "done" for life in self.lives.values() for word, _ in life)


class Jobs:
    """Jobs by id and name: a slurmctld that crashed may have lost a job, and have given its id to another."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], Job] = {}

    def of(self, job_id: str, key: str) -> Job:
        """One job; made if it is not known."""
        return self._jobs.setdefault((job_id, key), Job(job_id, key))

    def get(self, attempt: Attempt) -> Job | None:
        """Return the job of a submission; None if it is unknown."""
        return self._jobs.get((attempt.job_id, attempt.owner["key"]))

    def __getitem__(self, job_id: str) -> Job:
        """The last job with that id."""
        return next(job for job in reversed(self._jobs.values()) if job.job_id == job_id)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())


@dataclass(frozen=True)
class Row:
    """One line of a task's log."""

    attempt: int  # Airflow's try
    text: str
    time: str
    part: str  # "attempt-1/output.log" if it is a line of a job's output
    end: int


@dataclass
class Attempt:
    """One submission, read from its directory on the cluster."""

    folder: Path
    owner: dict[str, str]

    @property
    def number(self) -> int:
        return int(self.folder.name.rpartition("-")[2])

    @property
    def job_id(self) -> str:
        file = self.folder / "job_id"
        return file.read_text().strip() if file.exists() else ""

    @cached_property
    def output(self) -> dict[int, str]:
        """Lines that are not blank, by the place where they end."""
        file, place, found = self.folder / "output.log", 0, {}
        for line in file.read_bytes().splitlines(keepends=True) if file.exists() else []:
            place += len(line)
            if line.strip():
                found[place] = line.decode().rstrip("\n")
        return found

    @property
    def alive_until(self) -> float:
        """When its job last wrote a line of its own: epoch seconds, 0 if it never did."""
        wrote = [float(line.split()[0]) for line in self.output.values() if re.match(r"\d+\.\d+ line ", line)]
        return max(wrote, default=0.0)


class Ledger:
    """:param logs: Airflow's log folder."""

    def __init__(self, cluster: LocalCluster, logs: Path) -> None:
        self.cluster = cluster
        self.logs = logs

    @property
    def file(self) -> Path:
        """The jobs' ledger, on the shared file system."""
        return self.cluster.workspace / "ledger"

    def make(self) -> None:
        """An empty one that every job may write."""
        self.file.touch()
        self.file.chmod(0o666)

    def jobs(self) -> Jobs:
        """All jobs that ran user code."""
        found = Jobs()
        for line in self.file.read_text().splitlines():
            word, key, job_id, life, at = line.split()
            found.of(job_id, key).lives[int(life)].append((word, float(at.replace(",", "."))))
        return found

    def accounted(self) -> Jobs:
        """The same, with state and times of accounting; also jobs that never came to run user code."""
        found = self.jobs()
        argv = ["sacct", "-X", "-n", "-P", "-a", "-S", "now-1day", "-o", "JobIDRaw,JobName,State,Start,End"]
        for line in self.cluster.run("ctl", argv).stdout.splitlines():
            job_id, key, state, started, ended = line.split("|")
            job = found.of(job_id, key)
            job.state, job.started, job.ended = state.split()[0], started, ended
        return found

    def attempts(self, run: str = "*") -> list[Attempt]:
        """Submissions of a run's task ``job``, or of all, in order."""
        found = []
        for file in self.cluster.workspace.glob(f"*/{run}/job/attempt-*/owner.json"):
            found.append(Attempt(file.parent, json.loads(file.read_text())))
        return sorted(found, key=lambda attempt: (str(attempt.folder.parent), attempt.number))

    def began(self, run: str, number: int = 1) -> list[str]:
        """Ids of the jobs of one attempt that ran user code."""
        keys = {a.owner["key"] for a in self.attempts(run) if a.number == number}
        return [job.job_id for job in self.jobs() if job.key in keys]

    def story(self, run: str, tries: int) -> str:
        """Describe a run, for a test that expected something else.

        It has whether two of its jobs ran at once, when each of them ran, and the task's log without the jobs' output.
        """
        jobs, attempts, lives, doubled = self.jobs(), self.attempts(run), [], False
        for attempt in attempts:
            for job in (job for job in jobs if job.key == attempt.owner["key"]):
                said = sorted((at, word) for life in job.lives.values() for word, at in life)
                doubled |= bool(lives) and said[0][0] < lives[-1][1]
                until = max(said[-1][0], attempt.alive_until if job.job_id == attempt.job_id else 0.0)
                lives.append((f"{attempt.folder.name}: Slurm job {job.job_id}: {said}", until))
        word = (
            "DOUBLED: two jobs ran at once"
            if doubled
            else "one job after the other"
            if lives[1:]
            else "one job"
        )
        head = f"{run}: {len(attempts)} attempts in {tries} tries; {word}"
        log = [f"try {row.attempt}, {row.time}: {row.text[:300]}" for row in self.rows(run) if not row.part]
        return "\n".join([head, *(text for text, _ in lives), *log])

    def rows(self, run: str, dag: str = "*", task: str = "job") -> list[Row]:
        """All lines of a task's logs, in order of time."""
        found = []
        for file in self.logs.glob(f"dag_id={dag}/run_id={run}/task_id={task}/attempt=*.log*"):
            number = int(re.findall(r"attempt=(\d+)", file.name)[0])
            found += list(_rows(file, number))
        return sorted(found, key=lambda row: (row.attempt, row.time, row.end))

    def trigger_logs(self, run: str) -> list[Path]:
        """One file for each triggerer process that has watched a run's task ``job``."""
        return list(self.logs.glob(f"dag_id=*/run_id={run}/task_id=job/attempt=*.trigger.*.log"))

    def log_faults(self, run: str, attempt: Attempt, task: str = "job", *, whole: bool = True) -> list[str]:
        """Lines of an attempt's output that a task's logs lack, have twice or have otherwise, each a sentence.

        Each try of the task tells the output from its beginning. A line that equals one in the log may be counted.

        :param whole: the last try saw the job's end, so it must have every line.
        """
        tries: dict[int, list[Row]] = defaultdict(list)
        for row in self.rows(run, task=task):
            if row.part == f"{attempt.folder.name}/output.log":
                tries[row.attempt].append(row)
        faults = [] if tries or not whole else [f"{run}: {task}: lost: all of {attempt.folder.name}"]
        for number, rows in tries.items():
            ends = [row.end for row in rows]
            last = max(attempt.output, default=0) if whole and number == max(tries) else max(ends)
            where = f"{run}: {task}, try {number}, {attempt.folder.name}"
            twice = sorted({end for end in ends if ends.count(end) > 1})
            first = {end: min(row.time for row in rows if row.end == end) for end in twice}
            lacking = [
                line
                for end, line in attempt.output.items()
                # A job that Slurm requeues although it was done prints only this, and may have no follower any more.
                if end <= last and end not in ends and not line.endswith(RAN_AGAIN)
            ]
            texts = {row.text for row in rows}
            lacking = [line for line in lacking if line not in texts]
            wrong = [row for row in rows if attempt.output.get(row.end) != row.text]
            faults += [f"{where}: twice: {attempt.output.get(end)}, first {first[end]}" for end in twice]
            faults += [f"{where}: lost: {line}" for line in lacking]
            faults += [f"{where}: {row.text!r} is not {attempt.output.get(row.end)!r}" for row in wrong]
        return faults


def _rows(file: Path, number: int) -> Iterator[Row]:
    for line in file.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # cut off as its writer was killed
            continue
        part, _, end = str(row.get("loc", "")).rpartition(":")
        place = int(end) if end.isdigit() and part.endswith("output.log") else 0
        yield Row(
            number, str(row.get("event", "")), str(row.get("timestamp", "")), part if place else "", place
        )
