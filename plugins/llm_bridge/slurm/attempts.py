"""Which submission of a task is the current one: go on with it, or make the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llm_bridge.keys import job_key
from llm_bridge.slurm.client import JobInfo
from llm_bridge.slurm.states import Phase

if TYPE_CHECKING:
    from airflow.sdk import Context

STORE_KEY = "llm_bridge_attempt"


@dataclass(frozen=True)
class Attempt:
    """One submission: its number, its name in Slurm, and the clear that it belongs to.

    ``task_state_store`` outlives both retries and (in Airflow 3.3.2) clears, so ``clear_number`` says
    which of the two happened since.
    """

    number: int
    key: str
    directory: str
    clear_number: int
    job_id: str | None = None

    def save(self, context: Context) -> None:
        """Write it where the next try of this task finds it."""
        context["task_state_store"].set(STORE_KEY, asdict(self))


def stored(context: Context) -> Attempt | None:
    """What an earlier try of this task wrote down, if anything."""
    values: Any = context["task_state_store"].get(STORE_KEY)
    return Attempt(**values) if isinstance(values, Mapping) else None


def clear_number(context: Context) -> int:
    """How often this run has been cleared."""
    return getattr(context["dag_run"], "clear_number", 0) or 0


def following(context: Context, stage_directory: str, last: Attempt | None) -> Attempt:
    """The attempt after ``last``."""
    ti: Any = context["ti"]
    number = last.number + 1 if last else 1
    return Attempt(
        number=number,
        key=job_key(ti.dag_id, ti.run_id, ti.task_id, ti.map_index, number),
        directory=f"{stage_directory}/attempt-{number}",
        clear_number=clear_number(context),
    )


def goes_on(last: Attempt, info: JobInfo | None, *, service: bool) -> bool:
    """Whether a retry takes ``last`` up again instead of submitting anew.

    :param info: what Slurm says of its job; None if no id was written down or Slurm knows nothing.
    :param service: the job is of use only while it runs (a Ray cluster), not once it has ended well.

    A try may have died before or after sbatch, so an attempt without a known end is taken up again:
    submitting under its key finds the job if there is one. Only a job that is known to have ended badly
    makes room for the next.
    """
    return info is None or info.phase is not Phase.ENDED or (info.meaning.good and not service)
