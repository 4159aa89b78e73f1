"""Airflow DAG: every five minutes, cancel Slurm jobs whose DAG run is over. The first to see one only says so."""

from datetime import datetime

from airflow.sdk import DAG, Param

from llm_bridge.alerts import for_tasks
from llm_bridge.config.load import available
from llm_bridge.orphans import ReapOrphansOperator

with DAG(
    "reap_orphans",
    description="Cancel Slurm jobs whose DAG run is over",
    schedule="*/5 * * * *",  # one squeue each; a job that nobody wants holds its GPUs for ten minutes at most
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "dry_run": Param(False, type="boolean", title="Dry run", description="Only say what would be done.")
    },
    tags=["llm-bridge"],
    doc_md=__doc__,
    default_args={**for_tasks()},
):
    for cluster in available("clusters"):
        ReapOrphansOperator(task_id=cluster, cluster=cluster, only_say="{{ params.dry_run }}")
