"""What a task's failed attempts have come to, kept from try to try: whether training still makes progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context

STORE_KEY = "llm_bridge_failures"
# So many are remembered by name; nobody asks for older ones.
MOST_NAMES = 20


@dataclass(frozen=True)
class Ledger:
    """Of one task, since it was last cleared.

    :param step: the newest complete checkpoint that any attempt has made.
    :param stale: attempts since then that failed by themselves; of a job without checkpoints all of them.
    :param taken: attempts since then that were taken away: preempted, or a node failed under them.
    :param ended: names of the attempts that count already: a worker that dies and tries again must not count twice.
    """

    clear_number: int = 0
    max_tries: int = 0
    step: int | None = None
    stale: int = 0
    taken: int = 0
    ended: tuple[str, ...] = ()


def stored(context: Context) -> Ledger:
    """What is written down, unless the user has cleared the task since (as ``Attempt.was_cleared``)."""
    ti: Any = context["ti"]
    clears = getattr(context["dag_run"], "clear_number", 0) or 0
    values: Any = context["task_state_store"].get(STORE_KEY)
    if isinstance(values, Mapping):
        ledger = Ledger(**{**values, "ended": tuple(values["ended"])})
        if not (ledger.clear_number != clears and ledger.max_tries != ti.max_tries):
            return ledger
    return Ledger(clears, ti.max_tries)


def count(
    context: Context, name: str, *, before: int | None, step: int | None, taken: bool = False
) -> Ledger:
    """Write down that attempt ``name`` has failed; with it, the ledger says whether to go on.

    :param before: the newest complete checkpoint as the attempt began. :param step: and now.
    :param taken: the failure was none of the job's own.
    """
    ledger = stored(context)
    if name in ledger.ended:
        return ledger
    best = ledger.step if ledger.step is not None else before
    further = step is not None and (best is None or step > best)
    ledger = replace(
        ledger,
        step=step if further else best,
        stale=0 if further else ledger.stale + (not taken),
        taken=0 if further else ledger.taken + taken,
        ended=(*ledger.ended, name)[-MOST_NAMES:],
    )
    # Airflow's store takes JSON values only: a tuple is none.
    context["task_state_store"].set(STORE_KEY, asdict(ledger) | {"ended": list(ledger.ended)})
    return ledger
