"""Show links as buttons on a task's page in Airflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

from llm_bridge.monitoring import wandb_run
from llm_bridge.ray.dashboard import url_for

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

# Key of the XCom that stores the link.
XCOM_KEY = "ray_dashboard"


class _StoredLink(BaseOperatorLink):
    """Button with the link in the XCom ``xcom_key`` of this try of the task; without one there is no button."""

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the link; empty if there is none."""
        return XCom.get_value(ti_key=ti_key, key=self.xcom_key) or ""


class RayDashboardLink(_StoredLink):
    """Button to the Ray dashboard; it has no link if the cluster file has no ``ray.dashboard_url``."""

    name = "Ray dashboard"
    xcom_key = XCOM_KEY


class WandbLink(_StoredLink):
    """Button to the W&B run that the task's job logs to; it has no link before the run exists, or if it is offline."""

    name = "W&B run"
    xcom_key = wandb_run.XCOM_KEY


def push_link(ti: Any, cluster_name: str | None, dashboard: str | None) -> None:
    """Store the link to a dashboard for the task's button, if the site has a URL for it.

    Args:
        ti: Task instance.
        cluster_name: Name of the cluster file; None for a Ray cluster that is not a Slurm job of llm-bridge.
        dashboard: ``http://IP:PORT`` in the cluster's own network.
    """
    if url := url_for(cluster_name, dashboard):
        ti.xcom_push(key=XCOM_KEY, value=url)


def push_wandb_link(ti: Any, result: Any) -> None:
    """Store the link to a W&B run for the task's button, if the result of the task's job has its address.

    The trigger has stored it before, unless the task did not defer, or reuses a result.
    """
    if url := wandb_run.address(result.get("wandb") if isinstance(result, dict) else None):
        ti.xcom_push(key=wandb_run.XCOM_KEY, value=url)
