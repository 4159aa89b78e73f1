"""What llm-bridge adds to Airflow itself."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from llm_bridge.ray.dashboard import RayDashboardLink


class LlmBridgePlugin(AirflowPlugin):
    """Makes llm-bridge visible under Admin > Plugins, and its buttons known to the API server."""

    name = "llm_bridge"
    operator_extra_links = [RayDashboardLink()]
