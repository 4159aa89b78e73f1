"""Choose the cluster of a run: of several that the recipe names, the one that can start the run first.

The choice is made once for a run, by its task ``check``, and kept in that task's state store, which outlives retries
and clears: the run's jobs and data are on that cluster, so nothing that is cleared may move to another one. That holds
for a run with one cluster, too, whose recipe or whose cluster's file may be edited later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.sdk.execution_time.context import NEVER_EXPIRE

from llm_bridge.config.loader import load_cluster
from llm_bridge.exceptions import ClusterUnavailable, ConfigError, LoginNodeUnreachable, NotAcceptedYet
from llm_bridge.notifications.message import duration
from llm_bridge.pipeline import first_contact
from llm_bridge.pipeline.plan import Plan
from llm_bridge.remote.transport import CommandFailed
from llm_bridge.slurm.client import open_client
from llm_bridge.slurm.spec import SlurmJob
from llm_bridge.task_state import StateStore

log = logging.getLogger(__name__)

# {"cluster": name, "why": text}
STORE_KEY = "llm_bridge_cluster"
# Starts that differ by less count as equal: the estimates are of different seconds and of different clocks.
TIE_SECONDS = 60.0
# While no cluster can be asked, all of them are asked again at least this often.
ASK_AGAIN_SECONDS = 300.0
MAX_QUOTED_LENGTH = 200

MakePlan = Callable[[str], Plan]
Check = Callable[[Plan], Awaitable[Plan]]
Jobs = Callable[[Plan], list[SlurmJob]]


@dataclass(frozen=True)
class Answer:
    """Answer of one cluster.

    Attributes:
        cluster: Its name.
        seconds: Slurm's estimate of the time until the largest job can start; None if it has none.
        error: Why it cannot take the run; None if it can.
        plan: The run's plan on it, as its check has completed it; None if it cannot take the run.
    """

    cluster: str
    seconds: float | None = None
    error: Exception | None = None
    plan: Plan | None = None

    @property
    def text(self) -> str:
        """The answer for users."""
        if self.error:
            text = " ".join(str(self.error).split())
            return f"{self.cluster} was skipped: {text[:MAX_QUOTED_LENGTH].rstrip('. ')}"
        if self.seconds is None:
            return f"{self.cluster} at a time that Slurm cannot estimate"
        return f"{self.cluster} {'now' if self.seconds < TIE_SECONDS else f'in {duration(self.seconds)}'}"


class NoClusterNow(Exception):
    """No cluster can take the run, and at least one may when it is asked again.

    Args:
        answer: The answer of the first such cluster, to wait for.
        answers: All of them.
        is_first_contact: True if that cluster's login node has never answered.
    """

    def __init__(self, answer: Answer, answers: Sequence[Answer], is_first_contact: bool) -> None:
        super().__init__("; ".join(each.text for each in answers))
        self.answer = answer
        self.is_first_contact = is_first_contact


def chosen_before(store: StateStore) -> tuple[str, str] | None:
    """Return the cluster on which this run has begun, and why (empty where it had no choice); None before that.

    Args:
        store: State store of the task ``check``.
    """
    values = store.get(STORE_KEY)
    return (str(values["cluster"]), str(values["why"])) if isinstance(values, dict) else None


def keep(store: Any, plan: Plan) -> None:
    """Store the run's choice, before any task that follows can submit a job, for as long as the run exists.

    Args:
        store: State store of the task ``check``, Airflow's own.
        plan: The run's plan, on the chosen cluster.
    """
    # By default, Airflow deletes a value after 30 days; a run that is cleared later must not move, either.
    store.set(STORE_KEY, {"cluster": plan.cluster, "why": plan.cluster_choice}, retention=NEVER_EXPIRE)


async def choose(
    clusters: Sequence[str], make: MakePlan, check: Check, jobs: Jobs, *, is_last_contact: bool = False
) -> Plan:
    """Ask every cluster, and return the checked plan on the one that can start the run's largest job first.

    Starts within a minute of each other are equal, and the order of the clusters decides, as it does among clusters
    without an estimate, which come last.

    Args:
        clusters: Names of the cluster files, in the recipe's order.
        make: Makes the plan on a cluster.
        check: Checks a plan on its cluster and completes it, or raises ConfigError or ClusterUnavailable.
        jobs: Returns the jobs of a plan.
        is_last_contact: A login node that has never answered is not waited for any more.

    Raises:
        NoClusterNow: None can take the run now.
        ConfigError: None can ever take it; names each one's reason.
    """
    answers = []
    for name in clusters:
        log.info("asking cluster %s:", name)
        answers.append(await _ask(name, make, check, jobs))
        log.log(logging.WARNING if answers[-1].error else logging.INFO, "start: %s", answers[-1].text)
    able = [(answer, answer.plan) for answer in answers if answer.plan]
    if not able:
        raise await asyncio.to_thread(_none, answers, is_last_contact)
    known = [answer.seconds for answer, _ in able if answer.seconds is not None]
    first = min(known, default=0.0) + TIE_SECONDS
    best, plan = next((a for a in able if a[0].seconds is not None and a[0].seconds < first), able[0])
    texts = [best.text, *(answer.text for answer in answers if answer is not best)]
    why = f"Cluster {best.cluster} of {', '.join(clusters)}: the largest job can start on {'; '.join(texts)}"
    return plan.model_copy(update={"cluster_choice": why})


async def _ask(name: str, make: MakePlan, check: Check, jobs: Jobs) -> Answer:
    try:
        plan = await check(make(name))
        seconds = await _seconds_until_start(plan, jobs(plan))
    except (ConfigError, ClusterUnavailable, CommandFailed) as error:
        if isinstance(error, ClusterUnavailable) and not isinstance(error, LoginNodeUnreachable):
            await asyncio.to_thread(first_contact.record, load_cluster(name))
        return Answer(name, error=error)
    await asyncio.to_thread(first_contact.record, load_cluster(name))
    return Answer(name, seconds=seconds, plan=plan)


async def _seconds_until_start(plan: Plan, jobs: Sequence[SlurmJob]) -> float | None:
    """Return Slurm's estimate for the last of the largest jobs to start; None where there is none.

    The largest are those with the most GPUs, and among these with the most nodes.
    """

    def size(job: SlurmJob) -> tuple[int, int]:
        return job.resources.nodes * job.resources.gpus_per_node, job.resources.nodes

    most = max(map(size, jobs))
    starts: list[float] = []
    async with open_client(plan.cluster) as client:
        for job in jobs:
            if size(job) != most:
                continue
            try:
                seconds = (await client.estimate_start(job.resolve(client.cluster))).seconds
            except NotAcceptedYet as error:
                log.warning("%s", error)
                return None
            if seconds is None:
                return None
            starts.append(seconds)
    return max(starts)


def _none(answers: Sequence[Answer], is_last_contact: bool) -> Exception:
    """Return the error for a run that no cluster can take."""
    unavailable = [answer for answer in answers if isinstance(answer.error, ClusterUnavailable)]
    new = [
        answer
        for answer in unavailable
        if isinstance(answer.error, LoginNodeUnreachable)
        and first_contact.is_first(load_cluster(answer.cluster))
    ]
    if known := [answer for answer in unavailable if answer not in new]:
        return NoClusterNow(known[0], answers, is_first_contact=False)
    if new and not is_last_contact:
        return NoClusterNow(new[0], answers, is_first_contact=True)
    lines = [
        first_contact.describe(load_cluster(answer.cluster), answer.error)
        if answer in new and answer.error
        else str(answer.error)
        for answer in answers
    ]
    listed = "".join(f"\n  - {answer.cluster}: {line}" for answer, line in zip(answers, lines, strict=True))
    return ConfigError(
        f"none of the {len(answers)} clusters can take the run; nothing was submitted:{listed}"
    )
