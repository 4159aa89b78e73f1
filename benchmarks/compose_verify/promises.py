"""What was promised (docs/production.md, "Twice of everything") against what happened to a run's jobs, logs and tasks.

Nothing here asks llm-bridge: jobs are Slurm's accounting, output is what lies on the cluster, logs are Airflow's files.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compose_verify.stack import submitted_twice

WORDS = (
    "jobs doubled",
    "jobs lost",
    "jobs orphaned",
    "log lines lost",
    "log lines doubled",
    "log lines wrong",
    "tasks wrongly failed",
)
# A Ray cluster is followed until it is up, and then ended by another task.
SERVICE_TASK, RAY_TASK = "ppo.ray_up", "ppo.wait"
BROKEN = ("failed", "upstream_failed")


@dataclass(frozen=True)
class Submission:
    """One submission to Slurm or Ray, as its folder on the cluster tells."""

    task: str
    folder: Path
    key: str  # Slurm's name of the job; empty for a Ray job
    ended_well: bool

    def output(self) -> dict[int, str]:
        """Lines that are not blank, by the place where they end; a progress bar's carriage returns end lines, too."""
        file = self.folder / "output.log"
        data = file.read_bytes() if file.exists() else b""
        found = re.finditer(rb"([^\r\n]*)(?:\r\n|\n|\r|$)", data)
        lines = ((line.end(), line[1].decode("utf-8", "replace")) for line in found)
        return {end: text for end, text in lines if text.strip()}


def submissions(run: Path) -> list[Submission]:
    """All of a run.

    Args:
        run: its folder, copied from the cluster's workspace.
    """
    found = []
    for owner in sorted(run.glob("**/attempt-*/owner.json")):
        said = json.loads(owner.read_text())
        found.append(Submission(said["task_id"], owner.parent, said["key"], _well(owner.parent)))
    for settings in sorted(run.glob("**/ray-*/settings.json")):
        found.append(Submission(RAY_TASK, settings.parent, "", _well(settings.parent)))
    return found


def _well(folder: Path) -> bool:
    file = folder / "outcome.json"
    return file.exists() and json.loads(file.read_text()).get("exit_code") == 0


def judge(
    run: Path,
    logs: Path,
    jobs: list[dict[str, str]],
    queue: list[str],
    tries: dict[str, list[str]],
    spared: str,
) -> dict[str, list[str]]:
    """Each broken promise as a sentence, by kind.

    Args:
        run: the run's folder, copied from the cluster's workspace.
        logs: the run's folder of Airflow's logs.
        jobs: as `Stack.jobs` gives them.
        queue: what is in Slurm's queue when the run is over.
        tries: task -> states of all its tries, oldest first.
        spared: the task whose worker was killed: one try of it has to fail.
    """
    faults: dict[str, list[str]] = {word: [] for word in WORDS}
    ours = submissions(run)
    faults["jobs doubled"] += submitted_twice(jobs)
    faults["jobs orphaned"] += queue
    names = {job["JobName"] for job in jobs}
    keys = {one.key for one in ours if one.key}
    submitted = {one.key for one in ours if one.key and (one.folder / "job_id").exists()}
    faults["jobs lost"] += [f"{key}: not in Slurm's accounting" for key in sorted(submitted - names)]
    faults["jobs doubled"] += [f"{name}: no folder knows it" for name in sorted(names - keys)]
    last = {one.task: one for one in ours}
    by_task: dict[str, list[Submission]] = defaultdict(list)
    for one in ours:
        if one.key or one.task == RAY_TASK:
            by_task[one.task].append(one)
    for task, mine in by_task.items():
        faults["jobs doubled"] += [
            f"{task}: {after.folder.name} after {before.folder.name}, which had ended well"
            for before, after in itertools.pairwise(mine)
            if before.ended_well and task != SERVICE_TASK
        ]
        if tries.get(task, [])[-1:] == ["success"] and not last[task].ended_well and task != SERVICE_TASK:
            faults["jobs lost"].append(f"{task} is said to be done; {last[task].folder.name} is not")
    for task, states in tries.items():
        # A try whose job has truly failed is no wrong failure; there is a folder for each such job.
        allowed = max(0, len(by_task[task]) - 1) + (task == spared)
        failed = sum(state not in ("success", "skipped") for state in states)
        if states[-1] in BROKEN or failed > allowed:
            faults["tasks wrongly failed"].append(f"{task}: {', '.join(states)}")
    for one in ours:
        whole = one.ended_well and one.task != SERVICE_TASK and one is last[one.task]
        for word, fault in log_faults(one, logs, whole=whole):
            faults[f"log lines {word}"].append(fault)
    return faults


def seen(run: Path, logs: Path) -> dict[str, dict[str, int]]:
    """Submission -> how many lines of output it has, and how many triggerers have told them: for the report."""
    return {
        f"{one.task}, {one.folder.name}": {
            "lines": len(one.output()),
            "triggerers": len(list((logs / f"task_id={one.task}").glob("*.trigger.*.log"))),
        }
        for one in submissions(run)
    }


def log_faults(one: Submission, logs: Path, *, whole: bool) -> Iterator[tuple[str, str]]:
    """Lines of a job's output that its task's log lacks, has twice, otherwise or in another order: (word, sentence).

    Each try of the task tells the output from its beginning.

    Args:
        one: the job.
        logs: the run's folder of Airflow's logs.
        whole: the last try saw the job's end, so it must have every line.
    """
    output, tries = one.output(), shown(logs / f"task_id={one.task}", f"{one.folder.name}/output.log")
    name = f"{one.task}, {one.folder.name}"
    if whole and output and not tries:
        yield "lost", f"{name}: all {len(output)} lines"
    for number, rows in tries.items():
        where, ends = f"{name}, try {number}", [end for end, _ in rows]
        last = max(output, default=0) if whole and number == max(tries) else max(ends)
        for end, line in output.items():
            if end <= last and end not in ends:
                yield "lost", f"{where}: {line}"
            if ends.count(end) > 1:
                yield "doubled", f"{where}: {line}"
        for end, text in rows:
            if output.get(end) != text:
                yield "wrong", f"{where}: {text!r} is not {output.get(end)!r}"
        if ends != sorted(ends):
            yield "wrong", f"{where}: the order is not the output's"


def shown(folder: Path, part: str) -> dict[int, list[tuple[int, str]]]:
    """Try -> (end, text) of the lines of a job's output in a task's logs, in the order of their times.

    Args:
        folder: of the task's logs.
        part: which output: `attempt-1/output.log`.
    """
    found: dict[int, list[tuple[str, int, str]]] = defaultdict(list)
    for file in folder.glob("attempt=*.log*"):
        number = int(re.findall(r"attempt=(\d+)", file.name)[0])
        for line in file.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut off as its writer was killed
                continue
            where, _, end = str(row.get("loc", "")).rpartition(":")
            if where == part and end.isdigit():
                found[number].append((str(row["timestamp"]), int(end), str(row["event"])))
    # Lines of one moment have no order of their own.
    return {number: [(end, text) for _, end, text in sorted(rows)] for number, rows in found.items()}
