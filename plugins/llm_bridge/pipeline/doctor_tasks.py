"""Tasks of the DAG ``cluster_doctor``: the checks without a job, the Slurm job, and the report."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from llm_bridge.config.loader import load_cluster
from llm_bridge.operators.base import DIAGNOSIS_XCOM
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.pipeline import doctor
from llm_bridge.remote.messages import ERROR, Finding
from llm_bridge.slurm.spec import SlurmJob

if TYPE_CHECKING:
    from airflow.sdk import Context

EXAMINE, JOB, REPORT = "examine", "job", "report"
# XCom of the report: the findings, as JSON values.
FINDINGS_XCOM = "findings"
# In the queue and for the job, which is cancelled then.
JOB_TIMEOUT = timedelta(hours=1)


class ExamineOperator(BaseOperator):
    """Make the checks of a cluster file that need no job; see :func:`~llm_bridge.pipeline.doctor.examine`.

    Returns:
        ``{"findings", "later", "nodes", "why_no_job"}``; errors among the findings fail the report, not this task.
    """

    ui_color = "#eeeeee"

    def execute(self, context: Context) -> dict[str, Any]:
        """Make the checks of the form's cluster."""
        found = asyncio.run(doctor.examine(_params(context)["cluster"]))
        return {
            "findings": [finding._asdict() for finding in found.findings],
            "later": [finding._asdict() for finding in found.later],
            "nodes": found.nodes,
            "why_no_job": found.why_no_job,
        }


def job(context: Context) -> SlurmJob:
    """Return the doctor's job.

    Raises:
        AirflowSkipException: The form asks for none, or it cannot run.
    """
    params, ti = _params(context), _ti(context)
    if why := _why_no_job(context):
        raise AirflowSkipException(f"no job, because {why}")
    directory = doctor.directory(params["cluster"], ti.run_id)
    return doctor.job(params["cluster"], ti.xcom_pull(task_ids=EXAMINE)["nodes"], directory)


def job_task() -> SlurmSubmitOperator:
    """Return the task of the job."""
    return SlurmSubmitOperator(task_id=JOB, job=job, execution_timeout=JOB_TIMEOUT)


class ReportOperator(BaseOperator):
    """Log all findings as a table, and push them as the XCom ``findings``.

    Returns:
        The findings.

    Raises:
        AirflowFailException: Names the checks that are errors.
    """

    ui_color = "#eeeeee"

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Collect the findings, and send the test alerts."""
        from llm_bridge.pipeline import findings_table, tokens

        ti, params = _ti(context), _params(context)
        failed = Finding(EXAMINE, ERROR, f"task {EXAMINE!r} failed", "read its log")
        examined = ti.xcom_pull(task_ids=EXAMINE) or {"findings": [failed._asdict()], "later": []}
        findings = [Finding(**values) for values in examined["findings"]]
        findings += _of_job(context)
        findings += [Finding(**values) for values in examined["later"]]
        if params["send_alerts"]:
            findings += tokens.alerts(doctor.DAG)
        else:
            findings += doctor.skipped([tokens.ALERTS], "the form does not ask for them")
        for line in findings_table.as_text(findings).splitlines():
            self.log.info("%s", line.rstrip())
        values = findings_table.as_values(findings)
        ti.xcom_push(key=FINDINGS_XCOM, value=values)
        text = f"cluster {params['cluster']!r}: {findings_table.summary(findings)}"
        if findings_table.errors(findings):
            raise AirflowFailException(f"{text}. The log above and the XCom {FINDINGS_XCOM!r} say what to do")
        self.log.info("%s", text)
        return values


def _of_job(context: Context) -> list[Finding]:
    from llm_bridge.pipeline import doctor_job

    ti = _ti(context)
    if why := _why_no_job(context):
        return doctor_job.not_run(why)
    if result := ti.xcom_pull(task_ids=JOB):
        return doctor_job.succeeded(
            result["job_id"], result["result"], load_cluster(_params(context)["cluster"])
        )
    if diagnosis := ti.xcom_pull(task_ids=JOB, key=DIAGNOSIS_XCOM):
        return doctor_job.failed(diagnosis)
    return doctor_job.failed(
        {"title": "the job was not submitted", "evidence": f"see the log of task {JOB!r}"}
    )


def _why_no_job(context: Context) -> str:
    if not _params(context)["run_job"]:
        return "the form asks for none"
    examined = _ti(context).xcom_pull(task_ids=EXAMINE)
    why: str = examined["why_no_job"] if examined else f"task {EXAMINE!r} failed"
    return why


def _params(context: Context) -> dict[str, Any]:
    return dict(context["params"])


def _ti(context: Context) -> Any:
    return context["ti"]
