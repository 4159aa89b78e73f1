"""Count a task's failed attempts over its tries, to detect a training that makes no progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from llm_bridge.task_state import TaskState

STORE_KEY = "llm_bridge_failures"
# Names of attempts that are kept; older ones are never looked up.
MAX_NAMES = 20


@dataclass(frozen=True)
class ProgressLedger:
    """Failed attempts of one task since it was last cleared.

    Attributes:
        clear_number: The run's ``clear_number`` when the ledger was stored.
        max_tries: The task's ``max_tries`` when the ledger was stored.
        step: Step of the newest complete checkpoint of any attempt.
        no_progress: Number of attempts since that checkpoint that failed by themselves; for a job without checkpoints
            all that did.
        interrupted: Number of attempts since that checkpoint that were preempted, lost a node or were forgotten.
        ended: Names of the counted attempts, so that a worker that dies and retries does not count one twice.
    """

    clear_number: int = 0
    max_tries: int = 0
    step: int | None = None
    no_progress: int = 0
    interrupted: int = 0
    ended: tuple[str, ...] = ()


def load(task: TaskState) -> ProgressLedger:
    """Return the stored ledger, or an empty one if there is none or the user has cleared the task since."""
    values: Any = task.store.get(STORE_KEY)
    if isinstance(values, Mapping):
        ledger = ProgressLedger(**{**values, "ended": tuple(values["ended"])})
        if not task.was_cleared_since(ledger.clear_number, ledger.max_tries):
            return ledger
    return ProgressLedger(task.clear_number, task.max_tries)


def count(
    task: TaskState, name: str, *, before: int | None, step: int | None, interrupted: bool = False
) -> ProgressLedger:
    """Count a failed attempt, store the ledger and return it.

    Args:
        task: Task of the attempt.
        name: Name of the attempt.
        before: Step of the newest complete checkpoint when the attempt started.
        step: Step of the newest complete checkpoint now.
        interrupted: True if the job did not fail by itself (preemption, node failure, forgotten by Slurm).
    """
    ledger = load(task)
    if name in ledger.ended:
        return ledger
    best = ledger.step if ledger.step is not None else before
    progressed = step is not None and (best is None or step > best)
    ledger = replace(
        ledger,
        step=step if progressed else best,
        no_progress=0 if progressed else ledger.no_progress + (not interrupted),
        interrupted=0 if progressed else ledger.interrupted + interrupted,
        ended=(*ledger.ended, name)[-MAX_NAMES:],
    )
    # Airflow's store accepts JSON values only, so no tuple.
    task.store.set(STORE_KEY, asdict(ledger) | {"ended": list(ledger.ended)})
    return ledger
