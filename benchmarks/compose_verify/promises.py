"""Check of a run's jobs, logs and tasks against docs/production.md, "Twice of everything".

Independent of llm-bridge: jobs are from Slurm's accounting, output from the cluster's files, logs from Airflow's files.
Only which lines a log must have is decided by the product's own filter, which has unit tests.
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
from llm_bridge.monitoring.log_filter import LogFilter

KINDS = (
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
    """One submission to Slurm or Ray, read from its folder on the cluster."""

    task: str
    folder: Path
    key: str  # Slurm's name of the job; empty for a Ray job
    ended_well: bool

    def output(self) -> dict[int, str]:
        """Return the non-blank lines by the offset of their end; a progress bar's carriage returns end lines, too."""
        file = self.folder / "output.log"
        data = file.read_bytes() if file.exists() else b""
        found = re.finditer(rb"([^\r\n]*)(?:\r\n|\n|\r|$)", data)
        lines = ((line.end(), line[1].decode("utf-8", "replace")) for line in found)
        return {end: text for end, text in lines if text.strip()}


def submissions(run: Path) -> list[Submission]:
    """Return all submissions of a run.

    Args:
        run: Its folder, copied from the cluster's workspace.
    """
    found = []
    for owner in sorted(run.glob("**/attempt-*/owner.json")):
        content = json.loads(owner.read_text())
        found.append(Submission(content["task_id"], owner.parent, content["key"], _well(owner.parent)))
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
    """Return the broken promises as sentences, by kind.

    Args:
        run: The run's folder, copied from the cluster's workspace.
        logs: The run's folder of Airflow's logs.
        jobs: Result of `ComposeStack.jobs`.
        queue: Jobs in Slurm's queue after the run's end.
        tries: States of all tries of each task, the oldest first.
        spared: The task whose worker was killed, one try of which must fail.
    """
    faults: dict[str, list[str]] = {kind: [] for kind in KINDS}
    ours = submissions(run)
    faults["jobs doubled"] += submitted_twice(jobs)
    faults["jobs orphaned"] += queue
    names = {job["JobName"] for job in jobs}
    keys = {one.key for one in ours if one.key}
    # A slurmctld that was killed may have lost the record of a job that ran to its end, by the job's own outcome file.
    submitted = {
        one.key
        for one in ours
        if one.key and (one.folder / "job_id").exists() and not (one.folder / "outcome.json").exists()
    }
    faults["jobs lost"] += [
        f"{key}: not in Slurm's accounting, and without an outcome" for key in sorted(submitted - names)
    ]
    faults["jobs doubled"] += [f"{name}: not in any folder" for name in sorted(names - keys)]
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
            faults["jobs lost"].append(f"{task} has succeeded; {last[task].folder.name} has not")
    for task, states in tries.items():
        # A try whose job has failed is no wrong failure; each such job has a folder.
        allowed = max(0, len(by_task[task]) - 1) + (task == spared)
        failed = sum(state not in ("success", "skipped") for state in states)
        if states[-1] in BROKEN or failed > allowed:
            faults["tasks wrongly failed"].append(f"{task}: {', '.join(states)}")
    for one in ours:
        whole = one.ended_well and one.task != SERVICE_TASK and one is last[one.task]
        for kind, fault in log_faults(one, logs, whole=whole):
            faults[f"log lines {kind}"].append(fault)
    return faults


def seen(run: Path, logs: Path) -> dict[str, dict[str, int]]:
    """Return for each submission the number of its output lines, and of the triggerers that relayed them."""
    return {
        f"{one.task}, {one.folder.name}": {
            "lines": len(one.output()),
            "triggerers": len(list((logs / f"task_id={one.task}").glob("*.trigger.*.log"))),
        }
        for one in submissions(run)
    }


def log_faults(one: Submission, logs: Path, *, whole: bool) -> Iterator[tuple[str, str]]:
    """Yield (kind, sentence) for each line of a job's output that is lost, doubled or wrong in its task's log.

    Each try of the task relays the output from its beginning.

    Args:
        one: The job.
        logs: The run's folder of Airflow's logs.
        whole: True if the last try followed the job to its end, so that it must have every line.
    """
    output, tries = one.output(), shown(logs / f"task_id={one.task}", f"{one.folder.name}/output.log")
    # One follower whose clock stands still counts more lines than any other: these are in every log.
    least = LogFilter(clock=lambda: 0.0)
    needed = {end for end, line in output.items() if least.shows(line)}
    name = f"{one.task}, {one.folder.name}"
    if whole and output and not tries:
        yield "lost", f"{name}: all {len(output)} lines"
    for number, rows in tries.items():
        where, ends = f"{name}, try {number}", [end for end, _ in rows]
        last = max(output, default=0) if whole and number == max(tries) else max(ends)
        for end, line in output.items():
            if end <= last and end in needed and end not in ends:
                yield "lost", f"{where}: {line}"
            if ends.count(end) > 1:
                yield "doubled", f"{where}: {line}"
        for end, text in rows:
            if output.get(end) != text:
                yield "wrong", f"{where}: {text!r} is not {output.get(end)!r}"
        # A follower that resumes shows lines that the one before it counted, after those that this one had logged.
        in_order = [end for end in ends if end in needed]
        if in_order != sorted(in_order):
            yield "wrong", f"{where}: the order is not the output's"


def shown(folder: Path, part: str) -> dict[int, list[tuple[int, str]]]:
    """Return (end, text) of the lines of a job's output in a task's logs by try, in the order of their times.

    Args:
        folder: Folder of the task's logs.
        part: The output, such as `attempt-1/output.log`.
    """
    found: dict[int, list[tuple[str, int, str]]] = defaultdict(list)
    for file in folder.glob("attempt=*.log*"):
        number = int(re.findall(r"attempt=(\d+)", file.name)[0])
        for line in file.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # incomplete, because its writer was killed
                continue
            where, _, end = str(row.get("loc", "")).rpartition(":")
            if where == part and end.isdigit():
                found[number].append((str(row["timestamp"]), int(end), str(row["event"])))
    # Lines with the same time have no order.
    return {number: [(end, text) for _, end, text in sorted(rows)] for number, rows in found.items()}
