"""Which submission of a task is the current one: go on with it, or make the next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from llm_bridge.keys import job_key
from llm_bridge.slurm.info import JobInfo
from llm_bridge.slurm.states import Phase

if TYPE_CHECKING:
    from airflow.sdk import Context

STORE_KEY = "llm_bridge_attempt"


@dataclass(frozen=True)
class Attempt:
    """One submission: its number, its name in Slurm, and what tells a retry from a clear.

    ``task_state_store`` outlives both retries and (in Airflow 3.3.2) clears. A clear counts up the run's
    ``clear_number`` and, for the cleared tasks alone, raises ``max_tries`` (``clear_task_instances``): only the two
    together say that this task was cleared, and not another one of its run.

    :param exclude: nodes that failed under an earlier attempt.
    :param fresh: no retry: the task's first attempt, or the first one after it was cleared.
    :param over: its job is known to have ended without success; the next try makes a new one.
    """

    number: int
    key: str
    directory: str
    clear_number: int
    max_tries: int
    job_id: str | None = None
    over: bool = False
    fresh: bool = False
    exclude: tuple[str, ...] = ()

    def save(self, context: Context, store_key: str = STORE_KEY) -> None:
        """Write it where the next try of this task finds it."""
        # Airflow's store takes JSON values only: a tuple is none.
        context["task_state_store"].set(store_key, asdict(self) | {"exclude": list(self.exclude)})

    def was_cleared(self, context: Context) -> bool:
        """Whether the user has cleared this task since."""
        return self.clear_number != clear_number(context) and self.max_tries != context["ti"].max_tries


def stored(context: Context, store_key: str = STORE_KEY) -> Attempt | None:
    """What an earlier try of this task wrote down, if anything."""
    values: Any = context["task_state_store"].get(store_key)
    if not isinstance(values, Mapping):
        return None
    return Attempt(**{**values, "exclude": tuple(values.get("exclude", ()))})


def clear_number(context: Context) -> int:
    """How often this run, or part of it, has been cleared."""
    return getattr(context["dag_run"], "clear_number", 0) or 0


def following(context: Context, stage_directory: str, last: Attempt | None) -> Attempt:
    """The attempt after ``last``."""
    ti: Any = context["ti"]
    number = last.number + 1 if last else 1
    cleared = last is not None and last.was_cleared(context)
    return Attempt(
        number=number,
        key=job_key(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, number),
        directory=f"{stage_directory}/attempt-{number}",
        clear_number=clear_number(context),
        max_tries=ti.max_tries,
        fresh=last is None or cleared or (last.fresh and last.job_id is None),
        # Who clears a task may have mended the node.
        exclude=last.exclude if last and not cleared else (),
    )


def end(context: Context, job_id: str, bad_nodes: Iterable[str] = ()) -> None:
    """Write down that this task's job has ended without success: the next try does not take it up again.

    Slurm forgets a job after MinJobAge, so the next try could not know.

    :param bad_nodes: nodes that the job itself blames (reason.json): the next attempts leave them out.
    """
    last = stored(context)
    if last and last.job_id == job_id:
        exclude = tuple(dict.fromkeys([*last.exclude, *bad_nodes]))
        replace(last, over=True, exclude=exclude).save(context)


def avoid(context: Context, bad_nodes: Iterable[str]) -> None:
    """Write down nodes that failed under the job of another task, whose place this one's attempts take."""
    last = stored(context) or replace(following(context, "", None), number=0, over=True)
    exclude = tuple(dict.fromkeys([*last.exclude, *bad_nodes]))
    replace(last, exclude=exclude).save(context)


def goes_on(last: Attempt, info: JobInfo | None, *, service: bool) -> bool:
    """Whether a retry takes ``last`` up again instead of submitting anew.

    :param info: what is known of its job; None if no id was written down or nobody knows the job.
    :param service: the job is of use only while it runs (a Ray cluster), not once it has ended well.

    A try may have died before or after sbatch, so an attempt without a known end is taken up again:
    submitting under its key finds the job if there is one. Only a job that is known to have ended badly
    makes room for the next.
    """
    if last.over:
        return False
    return info is None or info.phase is not Phase.ENDED or (info.meaning.good and not service)
