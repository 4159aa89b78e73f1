"""What follows a diagnosis, and the retry policy that tells it to Airflow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

from llm_bridge.failures.diagnosis import Diagnosis
from llm_bridge.failures.kinds import Action, kind_of
from llm_bridge.failures.ledger import Ledger

if TYPE_CHECKING:
    from airflow.sdk import Context

# Attempts in a row that failed by themselves and made no new complete checkpoint.
MOST_STALE = 2
# Attempts in a row that were taken away before a new one, which says nothing against the training; but one that never
# comes so far does not go on for ever. A job that makes none by nature goes on as often; then its retries decide.
MOST_TAKEN = 5
TAKEN = frozenset({"preempted", "node_failure", "forgotten"})
# The node that failed is left out, so there is nothing to wait for.
AT_ONCE = timedelta(seconds=5)
# A node named under one of these is left out by the next attempts.
BLAMES_NODES = frozenset({"network", "node_failure", "gpu_hardware", "bad_node", "ray_bring_up", "hang"})


@dataclass(frozen=True)
class Decision:
    """What follows a failed attempt.

    :param text: one line for people. :param delay: until the next try; None for the task's ``retry_delay``.
    :param nodes: to leave out.
    """

    action: Action
    text: str
    delay: timedelta | None = None
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Circumstances:
    """What a decision depends on beside the diagnosis.

    :param trains: the job makes checkpoints. :param final: it said itself that running it again cannot help.
    :param can_continue: the operator can submit the next attempt within this try.
    :param theirs: the job is over and another task's: the next try would look at the same end.
    :param tries_left: whether Airflow has another try for the task. :param retry_delay: before it.
    """

    trains: bool = False
    final: bool = False
    can_continue: bool = True
    theirs: bool = False
    tries_left: bool = True
    retry_delay: timedelta = timedelta(seconds=300)


def decide(diagnosis: Diagnosis, ledger: Ledger, around: Circumstances) -> Decision:
    """What follows; pure."""
    kind = kind_of(diagnosis.kind)
    nodes = diagnosis.nodes if diagnosis.kind in BLAMES_NODES else ()
    without = f", without {', '.join(nodes)}" if nodes else ""
    if around.final:
        return Decision(Action.STOP, "stops: the job itself said that running it again cannot help")
    if kind.action is Action.STOP:
        return Decision(Action.STOP, f"stops: {kind.why}")
    if around.theirs:
        return Decision(
            Action.STOP, "stops: the job is another task's; clear that one to have it submitted again"
        )
    if around.trains and ledger.stale >= MOST_STALE:
        at = f"step {ledger.step}" if ledger.step is not None else "none at all"
        text = f"stops: {ledger.stale} attempts in a row made no new complete checkpoint (newest: {at})"
        return Decision(Action.STOP, text)
    if around.trains and ledger.taken >= MOST_TAKEN:
        text = f"stops: {ledger.taken} jobs in a row were lost before a new complete checkpoint"
        text += ": lower trainer.save_freq"
        return Decision(Action.STOP, text)
    if (
        kind.action is Action.CONTINUE
        and around.can_continue
        and _may_continue(diagnosis.kind, ledger, around)
    ):
        point = f"from step {ledger.step}" if ledger.step is not None else "from its beginning"
        text = f"goes on {point} within this try{without}, no retry is used up: {kind.why}"
        return Decision(Action.CONTINUE, text, nodes=nodes)
    if not around.tries_left:
        return Decision(Action.LATER, "stops: no try is left; clear the task to go on", nodes=nodes)
    if nodes:
        return Decision(Action.ELSEWHERE, f"tries again at once{without}: {kind.why}", AT_ONCE, nodes)
    wait = f"{around.retry_delay.total_seconds():.0f} s"
    return Decision(Action.LATER, f"tries again in {wait}: {kind.why}", nodes=nodes)


def _may_continue(kind: str, ledger: Ledger, around: Circumstances) -> bool:
    """Training has its own limit; a job without checkpoints would run into its time limit again."""
    return around.trains or (kind != "time_limit" and ledger.taken < MOST_TAKEN)


class RetryByCause(RetryPolicy):
    """The retry policy of llm-bridge's operators: what their exceptions' ``decision`` says.

    It cannot give a task more tries than ``retries``; what must not use one up (a preemption, a lost node, the time
    limit) the operators go on from within the try. An exception without a decision follows the task's own settings.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,
        context: Context | None = None,
    ) -> RetryDecision:
        """See :meth:`airflow.sdk.RetryPolicy.evaluate`; Airflow logs the reason."""
        decision: Decision | None = getattr(exception, "decision", None)
        if decision is None:
            why = (
                f"{type(exception).__name__} has no diagnosis: the task's own retries and retry_delay decide"
            )
            return RetryDecision(reason=why)
        if decision.action is Action.STOP:
            return RetryDecision.fail(decision.text)
        return RetryDecision.retry(decision.delay, decision.text)

    def serialize(self) -> dict[str, Any]:
        """It has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> RetryPolicy:
        """See :meth:`serialize`."""
        return cls()


def with_policy(options: dict[str, Any]) -> dict[str, Any]:
    """An operator's arguments, with our retry policy where the user has none of his own.

    Airflow's mapped operators pass None where nothing was given; what a DAG or a task group gives comes beside the
    arguments (``default_args``).
    """
    given = options.get("retry_policy") or (options.get("default_args") or {}).get("retry_policy")
    options["retry_policy"] = given or RetryByCause()
    return options
