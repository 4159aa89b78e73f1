"""Provide the base class of operators on a cluster: defer while it is unavailable, cancel the job in ``on_kill``."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException

from llm_bridge.config.loader import load_cluster
from llm_bridge.diagnosis.explain import FailureReport
from llm_bridge.diagnosis.explain_slurm import explain_slurm
from llm_bridge.exceptions import ClusterUnavailable, NotAcceptedYet
from llm_bridge.monitoring import history
from llm_bridge.monitoring.run_record import LIVE_XCOM
from llm_bridge.naming import slug
from llm_bridge.operators.retry_policy import with_policy
from llm_bridge.ray.client import RayTarget
from llm_bridge.remote.shared_transport import run_in_task
from llm_bridge.slurm import attempts
from llm_bridge.slurm.cancellation import CANCEL_SECONDS
from llm_bridge.task_state import TaskState
from llm_bridge.triggers.base import TERMINAL, state_of_task
from llm_bridge.triggers.ray_from_dashboard import UNREACHABLE_TIMEOUT_SECONDS
from llm_bridge.triggers.reachability import ClusterReachableTrigger, DashboardReachableTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

    from llm_bridge.slurm.events import SlurmJobEvent
    from llm_bridge.slurm.spec import SlurmJob

# Timeout of on_kill for the request to Airflow's API.
STATE_TIMEOUT_SECONDS = 5.0
# Used when the DAG gives retry_delay as a number; Airflow's own default.
DEFAULT_RETRY_DELAY = timedelta(seconds=300)
DIAGNOSIS_XCOM = "diagnosis"
# Pause between two requests that fail although the cluster answers; it doubles with each one.
FIRST_PAUSE_SECONDS = 10.0
MAX_PAUSE_SECONDS = 300.0


class ClusterOperator(BaseOperator):
    """Base class of operators whose ``execute`` can run again from its beginning, and whose retries follow a diagnosis.

    Airflow calls ``on_kill`` when the user marks the task before it defers or while it waits in the worker, and also
    when the worker itself stops (a rolling update). In the first case ``on_kill`` cancels the task's job; in the second
    it does not, because the next try finds the job.
    """

    # While this process owns the job: the task instance, and a callable that cancels the job.
    _owned_job: tuple[Any, Callable[[], Coroutine[Any, Any, Any]]] | None = None
    # After a wait: number of waits in a row, and the deadline of the first one, which holds for all of them.
    _waits = 0
    _waits_until: float | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**with_policy(kwargs))

    # ---- waiting for the cluster

    def wait_for_cluster(
        self,
        cluster: str,
        error: Exception,
        directory: str | None = None,
        *,
        limit_seconds: float | None = None,
    ) -> NoReturn:
        """Defer until the cluster answers, then execute again; ``execution_timeout`` limits the wait.

        If the cluster answers, but refuses the request for now, the pause doubles with each further wait.

        Args:
            cluster: Name of the cluster file.
            error: Error of the request that failed.
            directory: Stage directory of the task if it may already have submitted a job.
            limit_seconds: Maximum wait, if it is less than ``execution_timeout`` allows.
        """
        waits, pause = self._waits + 1, 0.0
        if isinstance(error, NotAcceptedYet) or self._waits:
            pause = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._waits, 10))
            pause *= random.uniform(0.8, 1.2)
        if isinstance(error, NotAcceptedYet):
            self.log.warning("%s. Trying again in %.0f s (wait %d; uses no retry)", error, pause, waits)
        else:
            self.log.warning(
                "cluster %s unavailable; deferring until it answers (uses no retry): %s", cluster, error
            )
        deadline = self.deadline() if self._waits_until is None else self._waits_until
        if limit_seconds is not None:
            deadline = min(time.time() + limit_seconds, deadline or float("inf"))
        trigger = ClusterReachableTrigger(
            cluster, directory, deadline, pause=pause, waits=waits, reason=str(error)
        )
        self.defer(trigger=trigger, method_name="execute_again")

    def wait_for_ray(self, target: RayTarget, error: Exception, directory: str | None = None) -> NoReturn:
        """Defer until Ray, or its Slurm cluster, answers, then execute again; ``execution_timeout`` limits the wait.

        Args:
            target: Ray cluster.
            error: Error of the request that failed.
            directory: Stage directory of a Ray cluster that the task started itself.
        """
        if target.cluster and isinstance(error, ClusterUnavailable):
            self.wait_for_cluster(target.cluster, error, directory)
        self.log.warning("Ray dashboard unavailable; deferring until it answers (uses no retry): %s", error)
        deadline = self.deadline()
        if deadline is None and not target.cluster:
            deadline = time.time() + UNREACHABLE_TIMEOUT_SECONDS
        trigger = DashboardReachableTrigger(target.to_json(), directory, deadline)
        self.defer(trigger=trigger, method_name="execute_again")

    def execute_again(self, context: Context, event: dict[str, Any]) -> Any:
        """Execute from the beginning after the service answers again.

        Raises:
            AirflowException: The service did not answer before the deadline.
        """
        if not event["answers"]:
            reason = event.get("reason") or "the triggerer's log lines above show the last errors"
            raise AirflowException(
                f"{event['service']} did not answer before the task's time limit (execution_timeout) passed, or did "
                f"not accept its request until then: {reason}"
            )
        self._waits, self._waits_until = event.get("waits", 0), event.get("deadline")
        return self.execute(context)

    def deadline(self) -> float | None:
        """Return the end of ``execution_timeout`` in epoch seconds; Airflow does not enforce it for deferred tasks."""
        limit = self.execution_timeout
        return time.time() + limit.total_seconds() if limit else None

    # ---- failures

    def delay_before_retry(self) -> timedelta:
        """Return the task's ``retry_delay``, or Airflow's default if that is not a timedelta."""
        return self.retry_delay if isinstance(self.retry_delay, timedelta) else DEFAULT_RETRY_DELAY

    @staticmethod
    def push_diagnosis(context: Context, report: FailureReport) -> FailureReport:
        """Push the diagnosis as an XCom of the task; return the report."""
        context["ti"].xcom_push(key=DIAGNOSIS_XCOM, value=report.diagnosis.as_dict())
        return report

    def close_failed_job(
        self, context: Context, event: SlurmJobEvent, job: SlurmJob | None, final: bool
    ) -> FailureReport:
        """Explain why a Slurm job of this task failed, and record that its attempt has ended.

        Args:
            context: Airflow's.
            event: The job's end.
            job: Its specification; None where this task did not submit it.
            final: A retry cannot help.

        Returns:
            The diagnosis, and the decision what follows.
        """
        task = TaskState.from_context(context)
        report = run_in_task(
            explain_slurm(task, event, job, retry_delay=self.delay_before_retry(), final=final)
        )
        self.push_diagnosis(context, report)
        self.record_ended(
            context, event.directory, "failed", diagnosis=report.diagnosis, efficiency=report.efficiency
        )
        nodes = event.reason.nodes if event.reason else ()
        attempts.mark_ended(task, event.job_id, [*nodes, *report.decision.nodes])
        return report

    # ---- the run page

    def record_submitted(self, context: Context, directory: str | None, **facts: Any) -> None:
        """Record an attempt for the run page; see :func:`~llm_bridge.monitoring.history.submitted`.

        An error never fails the task. Nothing is recorded of a job without a directory of llm-bridge.
        """
        try:
            if directory:
                history.submitted(TaskState.from_context(context), directory, **facts)
        except Exception as error:
            self.log.warning("the run page will not show the job in %s: %s", directory, error)

    def record_ended(self, context: Context, directory: str | None, result: str, **facts: Any) -> None:
        """Record the end of an attempt for the run page; see :func:`~llm_bridge.monitoring.history.ended`.

        An error never fails the task.
        """
        try:
            if directory:
                ti: Any = context["ti"]
                live = ti.xcom_pull(task_ids=ti.task_id, map_indexes=ti.map_index, key=LIVE_XCOM)
                history.ended(TaskState.from_context(context), directory, result=result, live=live, **facts)
        except Exception as error:
            self.log.warning("the run page will not show the end of the job in %s: %s", directory, error)

    # ---- owning the job

    def take_ownership(self, ti: Any, cancel: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Make ``on_kill`` run ``cancel()`` if the user has marked the task.

        Args:
            ti: Task instance.
            cancel: Cancels the task's job.
        """
        self._owned_job = (ti, cancel)

    def release_ownership(self) -> None:
        """Make ``on_kill`` do nothing: a trigger owns the job, or there is no job."""
        self._owned_job = None

    def on_kill(self) -> None:
        """Cancel the job if the user has marked the task; see the class."""
        if not self._owned_job:
            return
        ti, cancel = self._owned_job
        # Called from a signal handler: a loop may be running in this thread, and the handler may have interrupted a
        # request to Airflow's API, so a second request from this thread would deadlock. Both run in other threads, with
        # a timeout.
        try:
            state = run_with_timeout(STATE_TIMEOUT_SECONDS, state_of_task, ti)
        except Exception as error:
            self.log.warning("cannot read the task's state; its job is not cancelled: %r", error)
            return
        if state not in TERMINAL:
            self.log.info("worker stopped while the task is %s; its job is not cancelled", state)
            return
        self.log.info("task was marked %s; cancelling its job", state)
        run_with_timeout(CANCEL_SECONDS, run_in_task, cancel())


def task_directory(cluster_name: str, context: Context) -> str:
    """Return ``WORKSPACE/DAG/RUN/TASK`` on the cluster."""
    ti: Any = context["ti"]
    index = f"-{ti.map_index}" if ti.map_index >= 0 else ""
    workspace = load_cluster(cluster_name).workspace
    return f"{workspace}/{slug(ti.dag_id)}/{slug(ti.run_id)}/{slug(ti.task_id)}{index}"


def run_with_timeout(seconds: float, call: Callable[..., Any], *arguments: Any) -> Any:
    """Run ``call`` in a daemon thread, which does not keep the process from ending, and return its result.

    Args:
        seconds: Timeout.
        call: Callable to run.
        *arguments: Its positional arguments.

    Raises:
        TimeoutError: The call takes longer than ``seconds``.
    """
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result(timeout=seconds)
