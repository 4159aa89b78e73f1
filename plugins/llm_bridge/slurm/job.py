"""A typed description of one Slurm job."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import field_validator, model_validator

from llm_bridge.config.hang import Hang
from llm_bridge.config.values import AbsolutePath, Count, Memory, SlurmWord, Strict, TimeLimit
from llm_bridge.slurm.fingerprint import Result
from llm_bridge.slurm.time_limit import warning

if TYPE_CHECKING:
    from llm_bridge.config.cluster import Cluster

# What llm-bridge itself decides; two answers to one question would be a puzzle for the reader.
_RESERVED = {
    "job-name",
    "output",
    "error",
    "comment",
    "open-mode",
    "parsable",
    "wait",
    "array",
    "chdir",
    "wrap",
}


class Resources(Strict):
    """What a job asks of Slurm. Empty means the cluster file's value, and then Slurm's default."""

    nodes: Count = 1
    gpus_per_node: int = 0
    ntasks_per_node: Count = 1
    cpus_per_task: Count | None = None
    mem: Memory | None = None
    time_limit: TimeLimit | None = None
    partition: SlurmWord | None = None
    account: SlurmWord | None = None
    qos: SlurmWord | None = None
    constraint: SlurmWord | None = None
    nodelist: SlurmWord | None = None
    exclude: SlurmWord | None = None
    exclusive: bool = False
    # Any other sbatch option, without the leading dashes; an empty value makes a flag of it.
    options: dict[SlurmWord, SlurmWord | None] = {}

    @field_validator("gpus_per_node")
    @classmethod
    def _not_negative(cls, value: int) -> int:
        if not 0 <= value <= 1024:
            raise ValueError("must be between 0 and 1024")
        return value

    @field_validator("options")
    @classmethod
    def _not_reserved(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        if taken := sorted(_RESERVED & set(value)):
            raise ValueError(f"{', '.join(taken)}: set by llm-bridge, remove it")
        return value


class SlurmJob(Strict):
    """One job: which script, with which settings and resources, in which directory of which cluster.

    Either ``template`` (a file in ``include/jobs``, without ``.sh.j2``) or ``script`` (the text of a batch
    script; its leading ``#SBATCH`` lines count) says what runs.
    """

    cluster: SlurmWord
    # Whose defaults in the cluster file's `stages` apply.
    stage: SlurmWord | None = None
    template: SlurmWord | None = None
    script: str | None = None
    settings: dict[str, Any] = {}
    resources: Resources = Resources()
    # Stage directory on the cluster; each submission gets ``attempt-N`` below it.
    directory: AbsolutePath
    # File name below the attempt's ``secrets/`` -> Airflow connection whose password goes into it.
    secrets: dict[SlurmWord, str] = {}
    # What the stage leaves behind; without it the job runs as often as it is asked for.
    result: Result | None = None
    # When it counts as hung; without it, never.
    hang: Hang | None = None
    # Told in time when it nears its end: the template saves what it has made (Slurm's --signal).
    warned: bool = False
    # In place of a result of its own: the jobs whose results this one makes on its way, in order. The first is that of
    # the stage in `directory`; each other one has a folder in the attempt's, by the name of its template.
    makes: tuple[SlurmJob, ...] = ()
    # The job is of use while it runs, from when this JSON file is in the attempt's directory.
    ready_file: SlurmWord | None = None

    @model_validator(mode="after")
    def _one_source(self) -> SlurmJob:
        if (self.template is None) == (self.script is None):
            raise ValueError("give either template or script")
        if self.template is not None and "/" in self.template:
            raise ValueError("template is a file name in include/jobs, without a folder")
        if self.script is not None and not self.script.startswith("#!"):
            raise ValueError(
                "script must begin with an interpreter line such as #!/bin/bash (sbatch insists)"
            )
        return self

    def after(self, job_id: str) -> SlurmJob:
        """The same job, which may start when another one has ended well; Slurm drops it where that did not."""
        # Without --kill-on-invalid-dep it would stay PENDING for ever (measured on 22.05; sbatch(1)).
        behind = {"dependency": f"afterok:{job_id}", "kill-on-invalid-dep": "yes"}
        options = {**self.resources.options, **behind}
        return self.model_copy(update={"resources": self.resources.model_copy(update={"options": options})})

    def without(self, nodes: Iterable[str], cluster: Cluster) -> SlurmJob:
        """The same job on other nodes than these, and than those that it or the cluster file excludes anyway."""
        excluded = [self.resources.exclude or cluster.exclude, *nodes]
        resources = self.resources.model_copy(update={"exclude": ",".join(filter(None, excluded))})
        return self.model_copy(update={"resources": resources})

    def directives(self, cluster: Cluster) -> list[tuple[str, str | None]]:
        """The ``#SBATCH`` options as (name, value); a value of None is a flag.

        The job's own resources come first, then the stage's and the cluster's values of the cluster file.
        """
        own, choose = self.resources, functools.partial(self._chosen, cluster)
        given: list[tuple[str, Any]] = [
            ("partition", choose("partition")),
            ("account", choose("account")),
            ("qos", choose("qos")),
            ("constraint", choose("constraint")),
            ("nodes", own.nodes),
            ("ntasks-per-node", own.ntasks_per_node),
            ("cpus-per-task", choose("cpus_per_task")),
            ("mem", choose("mem")),
            ("time", choose("time_limit")),
            ("exclude", choose("exclude")),
        ]
        if own.nodelist or own.gpus_per_node:  # a node list names GPU nodes: no use to jobs without GPUs
            given.append(("nodelist", choose("nodelist")))
        if own.gpus_per_node:
            gres = cluster.gpu_request == "gres"
            given.append(
                ("gres", f"gpu:{own.gpus_per_node}") if gres else ("gpus-per-node", own.gpus_per_node)
            )
        options: list[tuple[str, str | None]] = [(name, str(v)) for name, v in given if v is not None]
        if own.exclusive:
            options.append(("exclusive", None))
        if seconds := self.warning(cluster):
            options.append(("signal", f"B:USR1@{seconds}"))
        return options + list(own.options.items())

    def warning(self, cluster: Cluster) -> int | None:
        """How many seconds before its end the job is warned; None where it is not."""
        return warning(self._chosen(cluster, "time_limit")) if self.warned else None

    def _chosen(self, cluster: Cluster, name: str) -> Any:
        stage = cluster.stages.get(self.stage or "")  # type: ignore[call-overload]
        values = (getattr(source, name, None) for source in (self.resources, stage, cluster))
        return next((value for value in values if value is not None), None)

    def user_directives(self) -> list[str]:
        """The ``#SBATCH`` lines of ``script``: those before its first command, as sbatch(1) reads them."""
        lines = []
        for line in (self.script or "").splitlines()[1:]:
            if line.strip() and not line.startswith("#"):
                break
            if line.startswith("#SBATCH"):
                lines.append(line)
        return lines
