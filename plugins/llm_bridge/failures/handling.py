"""A failed attempt from end to end: collect, diagnose, decide, and write it down. What operators call in the worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from llm_bridge.failures import ledger
from llm_bridge.failures.decision import TAKEN, Circumstances, Decision, decide
from llm_bridge.failures.diagnosis import Diagnosis
from llm_bridge.failures.evidence import Evidence, Place, collect
from llm_bridge.failures.kinds import Action
from llm_bridge.failures.rules import diagnose

if TYPE_CHECKING:
    from airflow.sdk import Context

XCOM_KEY = "diagnosis"
# DAG authors may give numbers; Airflow's own default.
RETRY_DELAY = timedelta(seconds=300)


@dataclass(frozen=True)
class Explained:
    """Why an attempt failed, and what follows."""

    diagnosis: Diagnosis
    decision: Decision

    @property
    def goes_on(self) -> bool:
        """Whether the operator makes the next attempt itself, within this try."""
        return self.decision.action is Action.CONTINUE


def explain(
    context: Context,
    operator: Any,
    known: Evidence,
    place: Place,
    *,
    name: str,
    final: bool = False,
    can_continue: bool = True,
    theirs: bool = False,
    last_lines: Iterable[str] = (),
) -> Explained:
    """Find out why an attempt failed and decide what follows: one line in the log, and the XCom ``diagnosis``.

    Raises nothing of its own: a failure must not be hidden behind a second one.

    :param operator: for its ``retry_delay`` and ``log``.
    :param name: of the attempt; each counts once.
    :param final: the job itself said that running it again cannot help.
    :param can_continue: and :param theirs: as in :class:`~llm_bridge.failures.decision.Circumstances`.
    """
    ti: Any = context["ti"]
    log: logging.Logger = operator.log
    known = replace(known, attempt=ti.try_number, of=ti.max_tries + 1)
    try:
        evidence = asyncio.run(collect(known, place, last_lines))
    except Exception:
        log.exception("what the cluster knows of this failure could not be read; the rest is told without it")
        evidence = known
    diagnosis = diagnose(evidence)
    taken = diagnosis.kind in TAKEN
    counted = ledger.count(context, name, before=evidence.before, step=evidence.step, taken=taken)
    delay = getattr(operator, "retry_delay", None)
    around = Circumstances(
        trains=evidence.trains,
        final=final,
        can_continue=can_continue,
        theirs=theirs,
        tries_left=ti.try_number <= ti.max_tries,
        retry_delay=delay if isinstance(delay, timedelta) else RETRY_DELAY,
    )
    decision = decide(diagnosis, counted, around)
    diagnosis = replace(diagnosis, next=decision.text)
    ti.xcom_push(key=XCOM_KEY, value=diagnosis.as_dict())
    log.info(
        "%s: %s (%s). What follows: %s. Evidence: %s (%s)", name, diagnosis.kind, diagnosis.title, decision.text,
        diagnosis.evidence, diagnosis.source or "-",
    )  # fmt: skip
    return Explained(diagnosis, decision)


def own_checkpoints(settings: Mapping[str, Any], outputs: Iterable[str]) -> str | None:
    """The directory of the checkpoints that a job makes; None for one that makes none, or only reads another's.

    :param outputs: what the job's stage alone makes (``Result.outputs``).
    """
    directory = settings.get("checkpoint_dir")
    return directory if directory in set(outputs) else None
