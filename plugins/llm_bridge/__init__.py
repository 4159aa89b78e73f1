"""Post-train language models on Slurm GPU clusters and Ray, driven by Airflow.

The names in ``__all__`` are the public API. A name is imported when it is first used, so that programs on compute
nodes, which run a part of this package, need no Airflow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llm_bridge.version import VERSION as __version__

if TYPE_CHECKING:
    from llm_bridge.config.hang import Hang
    from llm_bridge.exceptions import ConfigError
    from llm_bridge.operators.exceptions import HubUploadFailed, RayJobFailed, SlurmJobFailed
    from llm_bridge.operators.hub import HubUploadOperator, model_asset
    from llm_bridge.operators.orphans import ReapOrphansOperator
    from llm_bridge.operators.ray import RayClusterOperator, RaySubmitJobOperator
    from llm_bridge.operators.retry_policy import DiagnosisRetryPolicy
    from llm_bridge.operators.slurm import SlurmCancelOperator, SlurmSubmitOperator
    from llm_bridge.pipeline.dag import post_training
    from llm_bridge.ray.spec import RayJob
    from llm_bridge.sensors.ray import RayJobSensor
    from llm_bridge.sensors.slurm import SlurmJobSensor
    from llm_bridge.slurm.spec import Resources, SlurmJob, StageOutput

_MODULES = {
    "ConfigError": "exceptions",
    "DiagnosisRetryPolicy": "operators.retry_policy",
    "Hang": "config.hang",
    "HubUploadFailed": "operators.exceptions",
    "HubUploadOperator": "operators.hub",
    "RayClusterOperator": "operators.ray",
    "RayJob": "ray.spec",
    "RayJobFailed": "operators.exceptions",
    "RayJobSensor": "sensors.ray",
    "RaySubmitJobOperator": "operators.ray",
    "ReapOrphansOperator": "operators.orphans",
    "Resources": "slurm.spec",
    "SlurmCancelOperator": "operators.slurm",
    "SlurmJob": "slurm.spec",
    "SlurmJobFailed": "operators.exceptions",
    "SlurmJobSensor": "sensors.slurm",
    "SlurmSubmitOperator": "operators.slurm",
    "StageOutput": "slurm.spec",
    "model_asset": "operators.hub",
    "post_training": "pipeline.dag",
}

__all__ = [
    "ConfigError",
    "DiagnosisRetryPolicy",
    "Hang",
    "HubUploadFailed",
    "HubUploadOperator",
    "RayClusterOperator",
    "RayJob",
    "RayJobFailed",
    "RayJobSensor",
    "RaySubmitJobOperator",
    "ReapOrphansOperator",
    "Resources",
    "SlurmCancelOperator",
    "SlurmJob",
    "SlurmJobFailed",
    "SlurmJobSensor",
    "SlurmSubmitOperator",
    "StageOutput",
    "__version__",
    "model_asset",
    "post_training",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use.

    Args:
        name: A name of ``__all__``.

    Raises:
        AttributeError: The name is not public.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
