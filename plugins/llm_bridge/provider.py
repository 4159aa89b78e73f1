"""Provider information for Airflow's provider manager, where llm-bridge is installed as a distribution."""

from __future__ import annotations

from typing import Any

from llm_bridge.version import VERSION

OPERATOR_MODULES = ("slurm", "ray", "hub", "orphans")


def get_provider_info() -> dict[str, Any]:
    """Return the provider information that ``airflow providers list`` shows (Airflow's provider_info.schema.json)."""
    name = "Slurm and Ray post-training"
    return {
        "package-name": "llm-bridge",
        "name": "llm-bridge",
        "description": "Post-train language models on Slurm GPU clusters and Ray.",
        "versions": [VERSION],
        "integrations": [{"integration-name": name, "external-doc-url": "", "tags": ["service"]}],
        "operators": [
            {
                "integration-name": name,
                "python-modules": [f"llm_bridge.operators.{kind}" for kind in OPERATOR_MODULES],
            }
        ],
        "sensors": [
            {
                "integration-name": name,
                "python-modules": ["llm_bridge.sensors.slurm", "llm_bridge.sensors.ray"],
            }
        ],
        "triggers": [
            {
                "integration-name": name,
                "python-modules": ["llm_bridge.triggers.slurm", "llm_bridge.triggers.ray"],
            }
        ],
    }
