"""Airflow plugin of llm-bridge."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from llm_bridge.operators.links import RayDashboardLink, WandbLink


class LlmBridgePlugin(AirflowPlugin):
    """Plugin that shows llm-bridge under Admin > Plugins and registers its buttons with the API server."""

    name = "llm_bridge"
    operator_extra_links = [RayDashboardLink(), WandbLink()]
