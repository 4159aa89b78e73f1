"""Submit a Slurm job and wait for its end; cancel the jobs of another task."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from airflow.sdk import BaseOperatorLink
from airflow.sdk.exceptions import AirflowException

from llm_bridge.config.hang import Hang, OnHang
from llm_bridge.config.loader import check_model
from llm_bridge.exceptions import ClusterUnavailable, ConfigError
from llm_bridge.operators.base import ClusterOperator, task_directory
from llm_bridge.operators.exceptions import SlurmJobFailed, SlurmJobPermanentError, fail, logs_config_errors
from llm_bridge.operators.links import WandbLink, push_wandb_link
from llm_bridge.remote import attempt_dir, connections
from llm_bridge.remote.attempt_dir import Outcome
from llm_bridge.remote.messages import FoundResult
from llm_bridge.remote.shared_transport import run_in_task
from llm_bridge.slurm.cancellation import cancel_and_wait, close_attempts
from llm_bridge.slurm.events import EndReason, SlurmJobEvent
from llm_bridge.slurm.spec import Resources, SlurmJob
from llm_bridge.slurm.status import from_outcome
from llm_bridge.slurm.submission import JobNotGone, SlurmSubmission, Submitted
from llm_bridge.task_state import TaskState
from llm_bridge.triggers.slurm import SlurmJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

JobSource = SlurmJob | Callable[["Context"], SlurmJob]
# XComs of a task: its job, and the follow-up job that depends on it; {"job_id", "directory"} each.
JOB_XCOM = "slurm_job"
FOLLOWUP_XCOM = "slurm_followup_job"
# Text that Jinja leaves unchanged, or the beginning of bash's ${#name} outside of it.
_RAW_OR_LENGTH = re.compile(r"(\{%-?\s*raw\b.*?\bendraw\s*-?%\})|\$\{#", re.DOTALL)


class SlurmSubmitOperator(ClusterOperator):
    r"""Submit one batch job to Slurm, relay its output to the task's log, and return its result.

    **How it works.** The job's name is made from DAG, run, task and attempt. The operator looks that name up before it
    submits anything, so a retry after a worker's death finds the existing job. While the job waits and runs, the task
    is deferred: it holds no worker slot, and its log shows the job's output live. If the job fails, the task's error
    has the job's state, exit code and last lines. Marking the task failed or success cancels the job.

    **After a failure** the operator diagnoses the cause from files on the cluster and raises it with the exception
    (``.diagnosis``, also the XCom ``diagnosis``). A job that was preempted or lost a node, and a training job that
    reached its time limit, is submitted again within the same try, which uses no retry. All else depends on
    ``retry_policy`` (default: :class:`~llm_bridge.operators.retry_policy.DiagnosisRetryPolicy`) and ``retries``.

    **Limits.** ``retries`` default to 0: set them. The trigger enforces ``execution_timeout``, because Airflow does not
    while a task is deferred (airflow#69678); it starts again with each job.

    ::

        SlurmSubmitOperator(
            task_id="count",
            cluster="local",
            script="#!/bin/bash\nsrun hostname\n",
            sbatch={"nodes": 2, "gpus_per_node": 1, "time_limit": "10"},
        )

    Args:
        cluster: Name of a file in ``include/clusters``. (templated)
        script: Text of a batch script; its leading ``#SBATCH`` lines are honoured. Bash's ``${#`` is no comment of
            Jinja here; write other text that Jinja must not read between ``{% raw %}`` and ``{% endraw %}``.
            (templated)
        sbatch: Resources of ``script``: the fields of :class:`~llm_bridge.slurm.spec.Resources`. (templated)
        job: Instead of the three above, a :class:`~llm_bridge.slurm.spec.SlurmJob`, or a callable that makes one from
            the task's context when the task runs.
        wait: False ends the task as soon as the job is submitted; wait with ``SlurmJobSensor``.
        followed_by: Follow-up job, or a callable that makes one or None. It is submitted right after this job with the
            dependency ``afterok``: it starts if this job succeeds, and Slurm drops it if not. The XCom
            ``slurm_followup_job`` holds ``{"job_id", "directory"}``. If Slurm refuses it, this task logs that and
            continues.
        deferrable: False waits in the worker instead of the triggerer.
        hang_minutes: Minutes without output after which a running job counts as hung; None for the setting of ``job``,
            or never.
        on_hang: ``report`` sends an alert (include/alerts.yaml) and continues to wait; ``retry`` ends the job, and the
            task fails.

    Returns:
        ``{"job_id", "cluster", "directory", "state", "queue_s", "run_s", "result"}``; ``result`` is the content of
        ``$ATTEMPT_DIR/result.json`` if the job wrote it; ``queue_s`` and ``run_s`` are seconds, ``queue_s`` is None if
        Slurm never answered while the job was followed.

    Raises:
        ConfigError: A value is wrong, or Slurm refuses the job; nothing was submitted, and no retry follows.
        SlurmJobFailed: The job ended in any state but COMPLETED.
        SlurmJobPermanentError: As before, and the job reported that a retry cannot help.
    """

    template_fields: Sequence[str] = ("cluster", "script", "sbatch")
    template_fields_renderers = {"script": "bash", "sbatch": "json"}
    ui_color = "#d7e8f5"
    operator_extra_links: Collection[BaseOperatorLink] = (WandbLink(),)
    # JSON file that a service, such as a Ray cluster, writes when it is ready; None for a batch job.
    ready_file: str | None = None
    # Exit codes that mean that a retry cannot help, as "retry": false in the job's REASON file does.
    final_exit_codes: frozenset[int] = frozenset()

    def __init__(
        self,
        *,
        cluster: str | None = None,
        script: str | None = None,
        sbatch: dict[str, Any] | Resources | None = None,
        job: JobSource | None = None,
        followed_by: SlurmJob | Callable[[Context], SlurmJob | None] | None = None,
        wait: bool = True,
        deferrable: bool = True,
        hang_minutes: float | None = None,
        on_hang: OnHang = "report",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (job is None) == (script is None):
            raise ValueError(f"task {self.task_id!r}: give either job, or cluster and script")
        if script is not None and cluster is None:
            raise ValueError(
                f"task {self.task_id!r}: script needs cluster, the name of a file in include/clusters"
            )
        self.cluster = cluster
        self.script = _without_jinja_comments(script)
        self.sbatch = sbatch.model_dump(exclude_defaults=True) if isinstance(sbatch, Resources) else sbatch
        self.job = job
        self.followed_by = followed_by
        self.wait = wait
        self.deferrable = deferrable
        self.hang = Hang.from_settings(hang_minutes, on_hang)

    def render_template_fields(self, context: Context, jinja_env: jinja2.Environment | None = None) -> None:
        """Render the templates.

        Raises:
            ConfigError: A template is not valid for Jinja.
        """
        try:
            super().render_template_fields(context, jinja_env)
        except jinja2.TemplateError as error:
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ConfigError(
                f"task {self.task_id!r}: Jinja cannot render cluster, script or sbatch{line}: {error}. Airflow "
                "replaces {{ ... }} and {% ... %} there; write text that is meant for the shell between {% raw %} and "
                "{% endraw %}"
            ) from error

    @logs_config_errors
    def execute(self, context: Context) -> Any:
        """Submit the job, or find the one that an earlier try submitted; then wait for its end."""
        job = self.build_job(context)
        submission = self.submission(context, job)
        self.take_ownership(context["ti"], submission.cancel)
        try:
            found = run_in_task(submission.submit())
        except ClusterUnavailable as error:
            self.wait_for_cluster(job.cluster, error, job.directory)
        except JobNotGone as error:
            raise AirflowException(str(error)) from None
        if found.reused:
            return self._reuse_result(context, job, found.reused)
        return self._wait(context, job, found)

    def _wait(self, context: Context, job: SlurmJob, found: Submitted) -> Any:
        attempt = found.attempt
        assert attempt.job_id
        submitted = {"job_id": attempt.job_id, "directory": attempt.directory}
        context["ti"].xcom_push(key=JOB_XCOM, value=submitted)
        if found.followup:
            context["ti"].xcom_push(key=FOLLOWUP_XCOM, value=found.followup)
        if not self.wait:
            return {**submitted, "cluster": job.cluster}
        resources = job.resources
        self.record_submitted(
            context,
            attempt.directory,
            name=f"Slurm job {attempt.job_id}",
            job_id=attempt.job_id,
            gpus=resources.nodes * resources.gpus_per_node,
            kind="slurm",
        )
        hang = self.hang or job.hang
        trigger = SlurmJobTrigger(
            cluster=job.cluster,
            job_id=attempt.job_id,
            directory=attempt.directory,
            ready_file=job.ready_file or self.ready_file,
            deadline=self.deadline(),
            hang=hang.model_dump() if hang else None,
        )
        # A job that has ended needs no trigger: read its files and return.
        if found.has_ended or not self.deferrable:
            return self.execute_complete(context, run_in_task(trigger.outcome()))
        self.release_ownership()
        self.defer(trigger=trigger, method_name="execute_complete")

    def _reuse_result(self, context: Context, job: SlurmJob, found: FoundResult) -> dict[str, Any]:
        """Return the existing result as if this task had made it."""
        self.release_ownership()
        job_id, directory = found.job_id or "", found.directory
        self.log.info(
            "nothing to do: reusing the result of Slurm job %s, which has the same settings and inputs: %s. To run the "
            "job again: `touch %s` on the cluster and clear this task, or name the stage in force_stages",
            job_id, directory, f"{job.directory}/{attempt_dir.FORCE_RERUN}",
        )  # fmt: skip
        context["ti"].xcom_push(key=JOB_XCOM, value={"job_id": job_id, "directory": directory})
        push_wandb_link(context["ti"], found.result)
        started = found.started.started if found.started else None
        outcome = Outcome(0, found.outcome.ended if found.outcome else 0, started)
        info = from_outcome(job_id, outcome)
        return {
            "job_id": job_id,
            "cluster": job.cluster,
            "directory": directory,
            "state": info.state,
            "queue_s": None,
            "run_s": round(info.run_seconds, 1),
            "result": found.result,
        }

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return the result of a job that has ended or is ready, or handle its failure."""
        ended = SlurmJobEvent.from_json(event)
        if not ended.succeeded:
            return self.handle_failure(context, ended)
        push_wandb_link(context["ti"], ended.result)
        ready = ended.end is EndReason.READY
        self.record_ended(context, ended.directory, "ready" if ready else "success")
        info = ended.info
        return {
            "job_id": ended.job_id,
            "cluster": ended.cluster,
            "directory": ended.directory,
            "state": info.state if info else "RUNNING",
            "queue_s": round(info.queue_seconds, 1) if info and info.submitted else None,
            "run_s": round(info.run_seconds, 1) if info else None,
            "result": ended.result,
        }

    def handle_failure(self, context: Context, event: SlurmJobEvent) -> Any:
        """Submit the next attempt if that uses no retry, else raise the failure.

        Raises:
            SlurmJobFailed: The job failed.
            SlurmJobPermanentError: The job failed and reported that a retry cannot help.
        """
        reason, info = event.reason, event.info
        final = (reason is not None and not reason.retry) or (
            info is not None and info.exit_code in self.final_exit_codes
        )
        job = self.build_job(context)
        report = self.close_failed_job(context, event, job, final)
        if self.followed_by:
            run_in_task(self.submission(context, job).close_followup())
        if report.should_resume:
            return self.execute(context)
        kind = SlurmJobPermanentError if final else SlurmJobFailed
        fail(kind(event, report), permanent=final, policy=self.retry_policy)

    def build_job(self, context: Context) -> SlurmJob:
        """Return the specification of the job to submit."""
        if self.job is not None:
            return self.job(context) if callable(self.job) else self.job
        assert self.cluster
        values = {
            "cluster": self.cluster,
            "script": self.script,
            "resources": self.sbatch or {},
            "directory": task_directory(self.cluster, context),
        }
        return check_model(SlurmJob, values, f"task {self.task_id!r}")

    def submission(self, context: Context, job: SlurmJob) -> SlurmSubmission:
        """Return the submission of the task's job."""
        followup = self.followed_by(context) if callable(self.followed_by) else self.followed_by
        return SlurmSubmission(
            job,
            TaskState.from_context(context),
            read_secrets(job),
            service=(job.ready_file or self.ready_file) is not None,
            followup=followup,
            followup_secrets=read_secrets(followup) if followup else None,
        )


def _without_jinja_comments(script: Any) -> Any:
    """Return a script in which Jinja reads bash's ``${#name}`` as text, not as the beginning of a comment."""
    if not isinstance(script, str):
        return script  # the output of another task
    return _RAW_OR_LENGTH.sub(lambda found: found[1] or "${{ '{#' }}", script)


def read_secrets(job: SlurmJob) -> dict[str, str]:
    """Return file name -> text of a job's secrets, read from their Airflow connections.

    Raises:
        ConfigError: A connection does not exist or holds no secret.
    """
    return {name: connections.secret(conn_id) for name, conn_id in job.secrets.items()}


class SlurmCancelOperator(ClusterOperator):
    """Cancel all jobs of a stage and wait until they have ended. Use it as a teardown, which also runs after failures.

    It reads the stage's directory on the cluster, not an XCom, so it finds the job of a task that died before it could
    push one.

    Args:
        stage: Callable that returns ``(cluster name, stage directory, ...)`` from the task's context, with one or more
            directories.
        wait_seconds: Maximum seconds to wait for the end of the jobs.

    Raises:
        AirflowException: A job has not ended after that, and Slurm is not ending it either. A job that is COMPLETING
            (its processes are being ended, or the site's epilog runs) is left to Slurm.
    """

    ui_color = "#f0e4d4"

    def __init__(
        self, *, stage: Callable[[Context], tuple[str, ...]], wait_seconds: float = 120, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        self.wait_seconds = wait_seconds

    def execute(self, context: Context) -> list[str]:
        """Cancel the jobs; return their ids."""
        cluster, *directories = self.stage(context)
        try:
            ids = [i for directory in directories for i in run_in_task(close_attempts(cluster, directory))]
            if not ids:
                self.log.info("nothing to cancel: no job was submitted in %s", ", ".join(directories))
                return []
            left = run_in_task(cancel_and_wait(cluster, ids, self.wait_seconds))
        except ClusterUnavailable as error:
            self.wait_for_cluster(cluster, error)
        if stuck := [job_id for job_id, info in left.items() if not info.is_completing]:
            raise AirflowException(
                f"Slurm job {', '.join(stuck)} on cluster {cluster!r} has not ended {self.wait_seconds:.0f} s "
                "after scancel and may still hold GPUs: check `scontrol show job` on the cluster"
            )
        if left:
            self.log.warning(
                "Slurm job %s is still COMPLETING %.0f s after scancel: Slurm ends its processes, or the site's epilog "
                "runs. Its nodes are free after that; there is nothing to do",
                ", ".join(left),
                self.wait_seconds,
            )
        if ended := [job_id for job_id in ids if job_id not in left]:
            self.log.info("Slurm job %s has ended", ", ".join(ended))
        return ids
