"""Remove the directories of old runs from the cluster after a scheduled run (``keep_runs`` of the recipe)."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowRuntimeError

from llm_bridge.naming import slug
from llm_bridge.notifications.callbacks import is_scheduled
from llm_bridge.pipeline.plan import Plan
from llm_bridge.remote.messages import OldRunsAnswer, OldRunsRequest, RunFolder
from llm_bridge.remote.shared_transport import run_in_task
from llm_bridge.slurm.client import SlurmClient, open_client

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

# Of one request, which SSH keeps open; and of all requests of one run.
REQUEST_SECONDS = 120.0
TOTAL_SECONDS = 15 * 60.0
ENDED = ("success", "failed")
# Id of a run with a logical date, in UTC.
_DATED = re.compile(r"(?:scheduled|backfill)__([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})")


def remove_old_runs(context: Context, planned: dict[str, Any], unchanged_since: str | None) -> None:
    """Remove old run directories on the cluster. What cannot be removed is a warning, and tried again next time.

    Args:
        context: Context of the last task of a run that has succeeded.
        planned: The run's plan, as its task check has returned it.
        unchanged_since: Earlier run that has trained the same; it is kept, as is this run.
    """
    if not (planned.get("recipe") or {}).get("keep_runs") or not is_scheduled(context):
        return
    plan = Plan.model_validate(planned)
    ti: Any = context["ti"]
    protected = {ti.run_id, *filter(None, [unchanged_since])}

    def state_of(run_id: str) -> str | None:
        try:
            state = ti.get_dagrun_state(dag_id=ti.dag_id, run_id=run_id)
        except AirflowRuntimeError:
            return None
        return str(getattr(state, "value", state))  # str() of an enumeration is its name

    try:
        run_in_task(_remove(plan, ti.dag_id, protected, state_of))
    except Exception as error:  # a successful run must not fail, whatever the cluster answers
        log.warning("keep_runs: old runs were not removed: %s", error)


def old_runs(
    runs: Sequence[RunFolder], keep: int, dag_id: str, protected: set[str], active: set[str]
) -> list[RunFolder]:
    """Return the runs to remove, the oldest first: those before the newest ``keep`` runs that have trained.

    Runs are ordered by their dates: a backfill of old dates removes no newer night.

    Args:
        runs: The runs in the directory of a DAG.
        keep: Number of runs that have trained to keep.
        dag_id: The DAG; another DAG's runs are never removed.
        protected: Ids of runs that are kept.
        active: Names of the directories of runs that have jobs.
    """
    found: list[RunFolder] = []
    trained = 0
    for run in sorted(runs, key=date_of, reverse=True):
        is_old = trained >= keep
        trained += run.trained
        is_busy = run.is_active or run.is_used or run.name in active
        # The name is that of the run's own directory: a copy under another name is no run.
        if is_old and not is_busy and run.dag_id == dag_id and run.name == slug(run.run_id):
            found.append(run)
    return [run for run in reversed(found) if run.run_id not in protected]


def date_of(run: RunFolder) -> float:
    """Return a run's logical date in epoch seconds; of one without a date, the time of its last change."""
    try:
        found = _DATED.match(run.run_id)
        return datetime.fromisoformat(found[1]).replace(tzinfo=UTC).timestamp() if found else run.newest
    except ValueError:
        return run.newest


async def _remove(
    plan: Plan, dag_id: str, protected: set[str], state_of: Callable[[str], str | None]
) -> None:
    directory = str(PurePosixPath(plan.directory).parent)
    async with open_client(plan.cluster) as client:
        listed = await _ask(client, plan, directory, None)
        active = {PurePosixPath(job.directory) for job in await client.list_active()}
        busy = {
            path.relative_to(directory).parts[0]
            for path in active
            if PurePosixPath(directory) in path.parents
        }
        names = []
        for run in old_runs(listed.runs, plan.recipe.keep_runs or 1, dag_id, protected, busy):
            state = await asyncio.to_thread(state_of, run.run_id)
            if state in ENDED:
                names.append(run.name)
            else:
                log.info("keep_runs: %s is kept: %s", run.name, state or "not in this Airflow's database")
        if not names and not listed.more:
            return
        freed, end = 0, time.monotonic() + TOTAL_SECONDS
        while True:
            done = await _ask(client, plan, directory, names)
            freed += done.freed
            for name in done.removed:
                log.info("keep_runs: removed %s/%s", directory, name)
            if not done.more or time.monotonic() > end:
                break
        left = "; the rest is deleted after the next scheduled run" if done.more else ""
        log.info("keep_runs: %.1f MiB were freed%s", freed / 2**20, left)


async def _ask(client: SlurmClient, plan: Plan, directory: str, remove: list[str] | None) -> OldRunsAnswer:
    request = OldRunsRequest(plan.workspace, directory, REQUEST_SECONDS, remove)
    answer: OldRunsAnswer = await client.call_helper("old_runs", request, OldRunsAnswer)
    for problem in answer.problems:
        log.warning("keep_runs: %s", problem)
    return answer
