"""Choose a task's current submission: resume the last attempt, or start the next one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.slurm.status import JobInfo, Phase
from llm_bridge.task_state import TaskState

STORE_KEY = "llm_bridge_attempt"


@dataclass(frozen=True)
class Attempt:
    """One submission: its number, its name in Slurm, and the counters that distinguish a retry from a clear.

    Attributes:
        number: Counted from 1; 0 for a job that was adopted from another task.
        key: Name of the job in Slurm, or its submission id in Ray.
        directory: The attempt's directory on the cluster; empty for a Ray cluster that is no Slurm job of llm-bridge.
        clear_number: The task's at the time of the attempt; see :class:`TaskState`.
        max_tries: The task's at the time of the attempt; see :class:`TaskState`.
        job_id: Id of the Slurm job, or of the one in which the Ray job runs; None until it is known.
        over: The job has ended without success: the next try starts a new attempt, unless the job has completed
            its work since, on a node that did not answer slurmctld.
        is_first: The task's first attempt, or the first one after it was cleared; not a retry.
        exclude: Nodes that failed under an earlier attempt.
    """

    number: int
    key: str
    directory: str
    clear_number: int
    max_tries: int
    job_id: str | None = None
    over: bool = False
    is_first: bool = False
    exclude: tuple[str, ...] = ()

    def save(self, task: TaskState, store_key: str = STORE_KEY) -> None:
        """Store the attempt in the task's state store, where the next try finds it."""
        # Airflow's store takes JSON values only, which have no tuples.
        task.store.set(store_key, asdict(self) | {"exclude": list(self.exclude)})

    def was_cleared(self, task: TaskState) -> bool:
        """Return true if the task was cleared after this attempt."""
        return task.was_cleared_since(self.clear_number, self.max_tries)


def load(task: TaskState, store_key: str = STORE_KEY) -> Attempt | None:
    """Return the attempt that an earlier try of the task stored, if any."""
    values: Any = task.store.get(store_key)
    if not isinstance(values, Mapping):
        return None
    return Attempt(**{**values, "exclude": tuple(values.get("exclude", ()))})


def next_attempt(task: TaskState, stage_directory: str, last: Attempt | None) -> Attempt:
    """Return the attempt that follows another one.

    Args:
        task: The task.
        stage_directory: The stage's directory on the cluster.
        last: The task's last attempt, if any.
    """
    number = last.number + 1 if last else 1
    cleared = last is not None and last.was_cleared(task)
    return Attempt(
        number=number,
        key=task.job_name(number),
        directory=f"{stage_directory}/{attempt_dir.attempt_name(number)}",
        clear_number=task.clear_number,
        max_tries=task.max_tries,
        is_first=last is None or cleared or (last.is_first and last.job_id is None),
        # The user may have cleared the task because the node was repaired.
        exclude=last.exclude if last and not cleared else (),
    )


def mark_ended(task: TaskState, job_id: str, bad_nodes: Iterable[str] = ()) -> None:
    """Store that the task's job has ended without success: the next try does not resume it.

    Slurm forgets a job after MinJobAge, so the next try may not be able to query its end.

    Args:
        task: The task.
        job_id: The job; ignored unless it is that of the last attempt.
        bad_nodes: Nodes that caused the failure; the next attempts exclude them.
    """
    last = load(task)
    if last and last.job_id == job_id:
        exclude = tuple(dict.fromkeys([*last.exclude, *bad_nodes]))
        replace(last, over=True, exclude=exclude).save(task)


def exclude_nodes(task: TaskState, bad_nodes: Iterable[str]) -> None:
    """Store nodes that failed under another task's job, which this task's attempts replace."""
    last = load(task) or replace(next_attempt(task, "", None), number=0, over=True)
    exclude = tuple(dict.fromkeys([*last.exclude, *bad_nodes]))
    replace(last, exclude=exclude).save(task)


def should_resume(last: Attempt, info: JobInfo | None, *, service: bool) -> bool:
    """Return true if a retry resumes the last attempt instead of submitting the next one.

    A try may have been killed before or after sbatch, so an attempt without a known end is resumed: a submission under
    its key finds the job if it exists. The next attempt is submitted only after a job that has ended without success.

    Args:
        last: The last attempt.
        info: State of its job; None if no id was stored, or Slurm does not know the job.
        service: The job is useful only while it runs (a Ray cluster), not after a successful end.
    """
    if last.over and not (info and info.meaning.good):
        return False
    return info is None or info.phase is not Phase.ENDED or (info.meaning.good and not service)
