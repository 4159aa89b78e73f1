"""Define the job specification for a Ray cluster."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from llm_bridge.config.hang import Hang
from llm_bridge.config.types import AbsolutePath, FrozenModel, SlurmWord
from llm_bridge.slurm.spec import StageOutput

SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|(API|ACCESS|SECRET|PRIVATE)_?KEY)$", re.IGNORECASE)
RESOURCES = ("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory", "entrypoint_resources")


class RayJob(FrozenModel):
    """Specification of a job on a Ray cluster.

    Give either ``entrypoint`` or ``program``. The ``entrypoint_*`` resources are those of the entrypoint process on the
    one node that it runs on, without the tasks and actors that it starts; with none of them Ray runs it on the head.

    Attributes:
        entrypoint: Command as a list of arguments.
        program: Name of a program of llm-bridge (``remote/node/__main__.py``); its only argument is the path of its
            ``settings``. Needs ``directory``.
        settings: JSON values for ``program``.
        directory: The stage's directory on the cluster.
        output: Outputs of the stage, as in ``SlurmJob``.
        hang: When the job counts as hung; None for never.
        runtime_env: Ray's runtime environment. It may hold no secret: the dashboard and the Jobs API show it to every
            user with access to them.
        entrypoint_num_cpus: Number of CPUs.
        entrypoint_num_gpus: Number of GPUs.
        entrypoint_memory: Bytes.
        entrypoint_resources: Name of a custom resource -> amount.
    """

    entrypoint: list[str] | None = Field(default=None, min_length=1)
    program: SlurmWord | None = None
    settings: dict[str, Any] = {}
    directory: AbsolutePath | None = None
    output: StageOutput | None = None
    hang: Hang | None = None
    runtime_env: dict[str, Any] = {}
    entrypoint_num_cpus: float | None = Field(default=None, ge=0)
    entrypoint_num_gpus: float | None = Field(default=None, ge=0)
    entrypoint_memory: int | None = Field(default=None, ge=0)
    entrypoint_resources: dict[str, Annotated[float, Field(gt=0)]] = {}

    @model_validator(mode="after")
    def _one_source(self) -> RayJob:
        if (self.entrypoint is None) == (self.program is None):
            raise ValueError("give either entrypoint or program")
        if self.program and not self.directory:
            raise ValueError("program needs directory, the stage's directory on the cluster")
        return self

    @field_validator("runtime_env")
    @classmethod
    def _no_secret(cls, runtime_env: dict[str, Any]) -> dict[str, Any]:
        if found := sorted(name for name in runtime_env.get("env_vars") or {} if SECRET.search(name)):
            raise ValueError(
                f"env_vars {', '.join(found)}: Ray's dashboard shows a job's runtime_env to every user. Give a secret "
                "to the Ray cluster's Slurm job (SlurmJob.secrets) instead; all jobs on the cluster inherit it"
            )
        return runtime_env

    @field_validator("entrypoint_resources")
    @classmethod
    def _others(cls, resources: dict[str, float]) -> dict[str, float]:
        if own := {"CPU", "GPU", "memory"} & resources.keys():
            raise ValueError(
                f"entrypoint_resources {', '.join(sorted(own))}: use entrypoint_num_cpus, entrypoint_num_gpus and "
                "entrypoint_memory instead"
            )
        return resources

    def resources(self) -> dict[str, Any]:
        """Return the resources that the entrypoint requests, as fields of the Jobs API."""
        requested = {name: getattr(self, name) for name in RESOURCES}
        return {name: value for name, value in requested.items() if value}
