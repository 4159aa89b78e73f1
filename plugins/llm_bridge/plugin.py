"""What llm-bridge adds to Airflow itself."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class LlmBridgePlugin(AirflowPlugin):
    """Makes llm-bridge visible under Admin > Plugins."""

    name = "llm_bridge"
