"""Airflow DAG: every five minutes, cancel Slurm jobs whose DAG run has ended.

The first sweep that finds such a job only logs it; the next one cancels it.
"""

from datetime import datetime

from airflow.sdk import DAG, Param

from llm_bridge.config.loader import available
from llm_bridge.notifications import for_tasks
from llm_bridge.operators.orphans import ReapOrphansOperator

with DAG(
    "reap_orphans",
    description="Cancel Slurm jobs whose DAG run has ended",
    schedule="*/5 * * * *",  # one squeue per cluster; an orphaned job holds its GPUs for ten minutes at most
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "report_only": Param(
            False, type="boolean", title="Dry run", description="Only log which jobs would be cancelled."
        )
    },
    tags=["llm-bridge"],
    doc_md=__doc__,
    default_args={**for_tasks()},
):
    for cluster in available("clusters"):
        ReapOrphansOperator(task_id=cluster, cluster=cluster, report_only="{{ params.report_only }}")
