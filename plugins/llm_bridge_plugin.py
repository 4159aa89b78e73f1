"""Entry point for Airflow's plugin loader, which imports every file in this folder by its stem."""

from llm_bridge.plugin import LlmBridgePlugin

__all__ = ["LlmBridgePlugin"]
