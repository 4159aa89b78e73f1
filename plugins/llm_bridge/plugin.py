"""Airflow plugin of llm-bridge."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from llm_bridge.operators.links import RayDashboardLink, WandbLink
from llm_bridge.ui.app import PREFIX, RunPage


class LlmBridgePlugin(AirflowPlugin):
    """Plugin that registers llm-bridge's buttons and its run page with the API server."""

    name = "llm_bridge"
    operator_extra_links = [RayDashboardLink(), WandbLink()]
    fastapi_apps = [{"app": RunPage(), "url_prefix": PREFIX, "name": "llm-bridge run page"}]
    # Relative, without a slash in front: Airflow's UI has a <base>, so this is right also below a path of its own.
    external_views = [
        {
            "name": "Training",
            "href": f"{PREFIX[1:]}/run?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "training",
        },
        {
            "name": "Training runs",
            "href": f"{PREFIX[1:]}/runs",
            "destination": "nav",
            "category": "browse",
            "url_route": "training_runs",
        },
    ]
