"""Decide the action after a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from llm_bridge.diagnosis.classes import Action, class_of
from llm_bridge.diagnosis.progress_ledger import ProgressLedger
from llm_bridge.diagnosis.report import Diagnosis

# Limit of attempts in a row that failed by themselves and made no new complete checkpoint.
MAX_NO_PROGRESS_ATTEMPTS = 2
# Limit of attempts in a row that were interrupted before a new complete checkpoint. An interruption is no fault of the
# training, but a training that never reaches its next checkpoint must not resume for ever. A job without checkpoints is
# started again as often; after that its retries apply.
MAX_INTERRUPTED_ATTEMPTS = 5
INTERRUPTED_CLASSES = frozenset({"preempted", "node_failure", "forgotten"})
# Delay before a retry that excludes the failed node, so that there is nothing to wait for.
IMMEDIATE_RETRY_DELAY = timedelta(seconds=5)
# Classes whose nodes the next attempts exclude.
NODE_FAULT_CLASSES = frozenset(
    {"network", "node_failure", "gpu_hardware", "bad_node", "ray_bring_up", "hang"}
)


@dataclass(frozen=True)
class Decision:
    """Action after a failed attempt.

    Attributes:
        action: Action to take.
        text: The action and its reason in one line.
        delay: Delay before the next try; None for the task's ``retry_delay``.
        nodes: Nodes that the next attempts exclude.
    """

    action: Action
    text: str
    delay: timedelta | None = None
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RetryContext:
    """Input of a decision beside the diagnosis.

    Attributes:
        trains: True if the job writes checkpoints.
        final: True if the job reported that a retry cannot help.
        can_continue: True if the operator can submit the next attempt within this try.
        foreign_job: True if the job has ended and belongs to another task, so that a retry would find the same end.
        tries_left: True if Airflow has another try for the task.
        retry_delay: The task's ``retry_delay``.
    """

    trains: bool = False
    final: bool = False
    can_continue: bool = True
    foreign_job: bool = False
    tries_left: bool = True
    retry_delay: timedelta = timedelta(seconds=300)


def decide(diagnosis: Diagnosis, ledger: ProgressLedger, context: RetryContext) -> Decision:
    """Return the action after a failed attempt. A pure function.

    Args:
        diagnosis: Cause of the failure.
        ledger: The task's failed attempts, this one included.
        context: Further conditions.
    """
    failure = class_of(diagnosis.kind)
    nodes = diagnosis.nodes if diagnosis.kind in NODE_FAULT_CLASSES else ()
    without = f" without {', '.join(nodes)}" if nodes else ""
    if context.final:
        return Decision(Action.STOP, "no retry: the job reported that a retry cannot help")
    if failure.action is Action.STOP:
        return Decision(Action.STOP, f"no retry: {failure.why}")
    if context.foreign_job:
        text = "no retry: the job belongs to another task; clear that one to submit it again"
        return Decision(Action.STOP, text)
    if context.trains and ledger.no_progress >= MAX_NO_PROGRESS_ATTEMPTS:
        newest = f"step {ledger.step}" if ledger.step is not None else "none"
        text = f"no retry: {ledger.no_progress} attempts in a row made no new complete checkpoint (newest: {newest})"
        return Decision(Action.STOP, text)
    if context.trains and ledger.interrupted >= MAX_INTERRUPTED_ATTEMPTS:
        text = (
            f"no retry: {ledger.interrupted} attempts in a row were interrupted before a new complete checkpoint; "
            "lower trainer.save_freq and clear the task"
        )
        return Decision(Action.STOP, text)
    if (
        failure.action is Action.CONTINUE
        and context.can_continue
        and _may_continue(diagnosis.kind, ledger, context)
    ):
        start = (
            f"resumes from step {ledger.step}"
            if ledger.step is not None
            else "starts again from its beginning"
        )
        text = f"{start} within this try{without}, which uses no retry: {failure.why}"
        return Decision(Action.CONTINUE, text, nodes=nodes)
    if not context.tries_left:
        return Decision(Action.LATER, "no retry left; clear the task to resume", nodes=nodes)
    if nodes:
        text = f"retries at once{without}: {failure.why}"
        return Decision(Action.ELSEWHERE, text, IMMEDIATE_RETRY_DELAY, nodes)
    wait = f"{context.retry_delay.total_seconds():.0f} s"
    return Decision(Action.LATER, f"retries in {wait}: {failure.why}", nodes=nodes)


def _may_continue(kind: str, ledger: ProgressLedger, context: RetryContext) -> bool:
    """Return True if the job may be submitted again within this try.

    Training has its own limits. A job without checkpoints would reach its time limit again.
    """
    return context.trains or (kind != "time_limit" and ledger.interrupted < MAX_INTERRUPTED_ATTEMPTS)
