"""Airflow DAG: check a cluster file end to end, and report what is wrong with what to do.

The log of the task `report` has the table; its XCom `findings` has the same as JSON. The task fails if a check is an
error. On the command line: `python -m llm_bridge doctor CLUSTER`.
"""

from datetime import datetime

from airflow.sdk import DAG, Param

from llm_bridge.config.loader import available, titles
from llm_bridge.pipeline import doctor_tasks

clusters = available("clusters") or [""]  # without one, the file still parses
with DAG(
    "cluster_doctor",
    description="Check a cluster file end to end",
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    is_paused_upon_creation=False,
    params={
        "cluster": Param(clusters[0], enum=clusters, values_display=titles("clusters"), title="Cluster"),
        "run_job": Param(
            True,
            type="boolean",
            title="Run a Slurm job",
            description="On two nodes, a few minutes: packages of the environment, GPUs, and an all-reduce.",
        ),
        "send_alerts": Param(
            True,
            type="boolean",
            title="Send test alerts",
            description="A test message on each channel of include/alerts.yaml.",
        ),
    },
    tags=["llm-bridge"],
    doc_md=__doc__,
):
    (
        doctor_tasks.ExamineOperator(task_id=doctor_tasks.EXAMINE)
        >> doctor_tasks.job_task()
        >> doctor_tasks.ReportOperator(task_id=doctor_tasks.REPORT, trigger_rule="all_done")
    )
