"""Explain a failed attempt: collect evidence, diagnose, count the attempt, and decide the action."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from llm_bridge.diagnosis import progress_ledger
from llm_bridge.diagnosis.classes import Action
from llm_bridge.diagnosis.evidence import Evidence, LogLocation, collect
from llm_bridge.diagnosis.report import Diagnosis
from llm_bridge.diagnosis.retry import INTERRUPTED_CLASSES, Decision, RetryContext, decide
from llm_bridge.diagnosis.rules import diagnose
from llm_bridge.task_state import TaskState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FailureReport:
    """Cause of a failed attempt, and the action that follows.

    Attributes:
        diagnosis: Cause of the failure.
        decision: Action that follows.
        efficiency: What the attempt's Slurm job used of what it requested; see
            :meth:`~llm_bridge.slurm.accounting.Accounting.efficiency`.
    """

    diagnosis: Diagnosis
    decision: Decision
    efficiency: dict[str, float] = field(default_factory=dict)

    @property
    def should_resume(self) -> bool:
        """True if the operator submits the next attempt itself, within this try."""
        return self.decision.action is Action.CONTINUE


async def explain(
    task: TaskState,
    partial: Evidence,
    location: LogLocation,
    *,
    name: str,
    retry_delay: timedelta,
    final: bool = False,
    can_continue: bool = True,
    foreign_job: bool = False,
    last_lines: Iterable[str] = (),
) -> FailureReport:
    """Diagnose a failed attempt, decide the action that follows, and log both in one line.

    An error while evidence is collected is logged and not raised, so that it does not hide the failure itself.

    Args:
        task: Task of the attempt.
        partial: Evidence that is available without the cluster.
        location: Logs and checkpoints on the cluster.
        name: Name of the attempt; the ledger counts each name once.
        retry_delay: The task's ``retry_delay``.
        final: True if the job reported that a retry cannot help.
        can_continue: As in :class:`~llm_bridge.diagnosis.retry.RetryContext`.
        foreign_job: As in :class:`~llm_bridge.diagnosis.retry.RetryContext`.
        last_lines: Last lines of the output, used if the cluster is unavailable.
    """
    partial = replace(partial, try_number=task.try_number, max_tries=task.max_tries + 1)
    try:
        evidence = await collect(partial, location, last_lines)
    except Exception:
        log.exception("failed to collect evidence of %s from the cluster; diagnosing without it", name)
        evidence = partial
    diagnosis = diagnose(evidence)
    interrupted = diagnosis.kind in INTERRUPTED_CLASSES
    ledger = progress_ledger.count(
        task, name, before=evidence.before, step=evidence.step, interrupted=interrupted
    )
    context = RetryContext(
        trains=evidence.trains,
        final=final,
        can_continue=can_continue,
        foreign_job=foreign_job,
        tries_left=task.tries_left,
        retry_delay=retry_delay,
    )
    decision = decide(diagnosis, ledger, context)
    diagnosis = replace(diagnosis, next_action=decision.text)
    log.info(
        "%s failed: %s (%s). Next: %s. Evidence: %s (%s)", name, diagnosis.kind, diagnosis.title, decision.text,
        diagnosis.evidence, diagnosis.source or "-",
    )  # fmt: skip
    accounting = evidence.accounting
    return FailureReport(diagnosis, decision, accounting.efficiency() if accounting else {})


def own_checkpoints(settings: Mapping[str, Any], outputs: Iterable[str]) -> str | None:
    """Return the directory of the checkpoints that a job writes; None if it writes none or reads another stage's.

    Args:
        settings: Settings of the job.
        outputs: Paths that only the job's stage writes (``StageOutput.outputs``).
    """
    directory = settings.get("checkpoint_dir")
    return directory if directory in set(outputs) else None
