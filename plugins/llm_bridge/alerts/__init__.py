"""Who is told of what becomes of a run: ``include/alerts.yaml`` says whom, and by which Airflow connections."""

from llm_bridge.alerts.config import Alerts, load_alerts
from llm_bridge.alerts.late import deadline
from llm_bridge.alerts.occasions import for_last_task, for_tasks, on_failure

__all__ = ["Alerts", "deadline", "for_last_task", "for_tasks", "load_alerts", "on_failure"]
