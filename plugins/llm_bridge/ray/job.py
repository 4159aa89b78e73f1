"""What to run on a Ray cluster."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from llm_bridge.config.hang import Hang
from llm_bridge.config.values import AbsolutePath, SlurmWord, Strict
from llm_bridge.slurm.fingerprint import Result


class RayJob(Strict):
    """What to run on a Ray cluster.

    Either ``entrypoint``, a command as a list of arguments, or ``program``, a Python file of ``include/jobs``
    that gets the path of its ``settings`` as its only argument; then ``directory`` is the stage's directory.
    """

    entrypoint: list[str] | None = None
    program: SlurmWord | None = None
    settings: dict[str, Any] = {}
    directory: AbsolutePath | None = None
    # What the stage leaves behind, as in SlurmJob.
    result: Result | None = None
    # When it counts as hung; without it, never.
    hang: Hang | None = None
    # The dashboard shows it to everybody who reaches it: no secret belongs in here.
    runtime_env: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_source(self) -> RayJob:
        if (self.entrypoint is None) == (self.program is None):
            raise ValueError("give either entrypoint or program")
        if self.program and not self.directory:
            raise ValueError("program needs directory, the stage's directory on the cluster")
        return self
