"""What to run on a Ray cluster."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from llm_bridge.config.hang import Hang
from llm_bridge.config.values import AbsolutePath, SlurmWord, Strict
from llm_bridge.slurm.fingerprint import Result

SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|(API|ACCESS|SECRET|PRIVATE)_?KEY)$", re.IGNORECASE)
RESOURCES = ("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory", "entrypoint_resources")


class RayJob(Strict):
    """What to run on a Ray cluster.

    Either ``entrypoint``, a command as a list of arguments, or ``program``, a Python file of ``include/jobs``
    that gets the path of its ``settings`` as its only argument; then ``directory`` is the stage's directory.

    What the entrypoint itself is to have on the one node that it runs on, apart from the tasks and actors that it
    starts: ``entrypoint_num_cpus``, ``entrypoint_num_gpus``, ``entrypoint_memory`` (bytes) and
    ``entrypoint_resources``, names of other resources -> amounts. Without any of them Ray runs it on the head.
    """

    entrypoint: list[str] | None = None
    program: SlurmWord | None = None
    settings: dict[str, Any] = {}
    directory: AbsolutePath | None = None
    # What the stage leaves behind, as in SlurmJob.
    result: Result | None = None
    # When it counts as hung; without it, never.
    hang: Hang | None = None
    # The dashboard and the Jobs API show it to everybody who reaches them: no secret belongs in here.
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
                f"env_vars {', '.join(found)}: Ray shows a job's runtime_env to all who reach its dashboard. Give a "
                "secret to the Ray cluster's Slurm job (SlurmJob.secrets): all jobs on it inherit it"
            )
        return runtime_env

    @field_validator("entrypoint_resources")
    @classmethod
    def _others(cls, resources: dict[str, float]) -> dict[str, float]:
        if own := {"CPU", "GPU", "memory"} & resources.keys():
            raise ValueError(
                f"{', '.join(sorted(own))}: use entrypoint_num_cpus, entrypoint_num_gpus, entrypoint_memory"
            )
        return resources

    def resources(self) -> dict[str, Any]:
        """What the entrypoint asks for, as the Jobs API wants it."""
        asked = {name: getattr(self, name) for name in RESOURCES}
        return {name: value for name, value in asked.items() if value}
