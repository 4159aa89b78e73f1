"""Alerts about runs: ``include/alerts.yaml`` names the recipients and the Airflow connections that reach them."""

from llm_bridge.notifications.callbacks import for_last_task, for_tasks, on_failure
from llm_bridge.notifications.config import Alerts, load_alerts
from llm_bridge.notifications.deadline import deadline_alert

__all__ = ["Alerts", "deadline_alert", "for_last_task", "for_tasks", "load_alerts", "on_failure"]
