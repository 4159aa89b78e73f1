"""Describe one Slurm job: its program, the resources it requests, and its outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import field_validator, model_validator

from llm_bridge.config import sbatch_options
from llm_bridge.config.cluster import Cluster, SlurmDefaults, StageDefaults
from llm_bridge.config.hang import Hang
from llm_bridge.config.types import AbsolutePath, Count, FrozenModel, SlurmWord
from llm_bridge.slurm.node_list import count_nodes
from llm_bridge.slurm.time_limit import warning_seconds


class Resources(SlurmDefaults):
    """Resources that a job requests from Slurm.

    None means the value of the cluster file and, if that has none, Slurm's default.

    Attributes:
        nodes: Number of nodes.
        gpus_per_node: Number of GPUs on each node.
        ntasks_per_node: Number of tasks that `srun` starts on each node.
        exclusive: No other job on the nodes.
    """

    in_cluster_file: ClassVar[bool] = False
    nodes: Count = 1
    gpus_per_node: int = 0
    ntasks_per_node: Count = 1
    exclusive: bool = False

    @field_validator("gpus_per_node")
    @classmethod
    def _not_negative(cls, value: int) -> int:
        if not 0 <= value <= 1024:
            raise ValueError("must be between 0 and 1024")
        return value


class StageOutput(FrozenModel):
    """Inputs and outputs of a stage, by which a finished stage is recognized and not run again.

    Attributes:
        inputs: Directories of the stages whose results this one takes.
        outputs: Paths that only this stage writes; archived (renamed) when an attempt starts from zero.
        shared: Paths that other runs use as well: they must exist for the result to be reused, and are never renamed.
        force: Produce the result again although it exists.
    """

    inputs: list[AbsolutePath] = []
    outputs: list[AbsolutePath] = []
    shared: list[AbsolutePath] = []
    force: bool = False


class SlurmJob(FrozenModel):
    """One Slurm job: its script, settings and resources, and its directory on a cluster.

    Exactly one of ``template`` and ``script`` is set.

    Attributes:
        cluster: Name of the cluster file.
        stage: Key of the cluster file's ``stages`` whose defaults apply.
        template: Name in ``remote/templates``, without ``.sh.j2``.
        script: Text of a batch script; its leading ``#SBATCH`` lines apply.
        settings: JSON values for the programs on the nodes, written to the attempt's ``settings.json``.
        resources: Resources that the job requests.
        directory: The stage's directory on the cluster; each submission gets ``attempt-N`` below it.
        secrets: File name below the attempt's ``secrets/`` -> Airflow connection whose password is written to it.
        output: Outputs of the stage; without them the job runs every time.
        hang: Limits after which the job counts as hung; None for no limits.
        signal_before_timeout: Let Slurm signal the job before its time limit (``--signal``): the template saves a
            checkpoint.
        produces: In place of ``output``: the jobs whose outputs this one produces, in order. The first is that of the
            stage in ``directory``; each other one has a folder in the attempt's directory, named after its template.
        ready_file: Name of a JSON file: the job is a service that is ready once the file is in the attempt's directory.
    """

    cluster: SlurmWord
    stage: SlurmWord | None = None
    template: SlurmWord | None = None
    script: str | None = None
    settings: dict[str, Any] = {}
    resources: Resources = Resources()
    directory: AbsolutePath
    secrets: dict[SlurmWord, str] = {}
    output: StageOutput | None = None
    hang: Hang | None = None
    signal_before_timeout: bool = False
    produces: tuple[SlurmJob, ...] = ()
    ready_file: SlurmWord | None = None

    @model_validator(mode="after")
    def _one_source(self) -> SlurmJob:
        if (self.template is None) == (self.script is None):
            raise ValueError("give either template or script")
        if self.template is not None and "/" in self.template:
            raise ValueError("template must be the name of a job template, without a folder")
        if self.script is not None and not self.script.startswith("#!"):
            raise ValueError(
                "script must begin with an interpreter line such as #!/bin/bash (sbatch requires it)"
            )
        if refused := sbatch_options.script_refusals(self.user_directives):
            raise ValueError(f"script: {'; '.join(refused)}. Remove the option from the script")
        return self

    @field_validator("secrets")
    @classmethod
    def _names_of_files(cls, value: dict[str, str]) -> dict[str, str]:
        if bad := sorted(name for name in value if not re.fullmatch(r"[A-Za-z0-9_-]+", name)):
            raise ValueError(f"{', '.join(bad)}: a secret's name may have letters, digits, '_' and '-' only")
        return value

    def resolve(self, cluster: Cluster) -> ResolvedJob:
        """Return the job with the cluster file's defaults, as it is checked and submitted."""
        return ResolvedJob(self, cluster)

    @property
    def user_directives(self) -> list[str]:
        """The ``#SBATCH`` lines of ``script`` before its first command: sbatch ignores all others (sbatch(1))."""
        lines = []
        for line in (self.script or "").splitlines()[1:]:
            if line.strip() and not line.lstrip().startswith("#"):
                break
            if line.startswith("#SBATCH"):
                lines.append(line)
        return lines


@dataclass(frozen=True)
class ResolvedJob:
    """A job on its cluster, with all options for ``sbatch``; see :meth:`SlurmJob.resolve`.

    Attributes:
        job: The job.
        cluster: Its cluster.
    """

    job: SlurmJob
    cluster: Cluster

    @property
    def name(self) -> str:
        """Name of the job in messages."""
        return self.job.template or "script"

    def with_dependency(self, job_id: str) -> ResolvedJob:
        """Return the same job, to start after another one has succeeded; Slurm cancels it if that one fails."""
        # Without --kill-on-invalid-dep it would stay PENDING for ever (measured on 22.05; sbatch(1)).
        dependency = {"dependency": f"afterok:{job_id}", "kill-on-invalid-dep": "yes"}
        return self._with_resources(options={**self.job.resources.options, **dependency})

    def excluding(self, nodes: Iterable[str]) -> ResolvedJob:
        """Return the same job without these nodes, in addition to those that it or the cluster file excludes."""
        excluded = [self._chosen("exclude"), *nodes]
        return self._with_resources(exclude=",".join(filter(None, excluded)))

    def in_each_partition(self) -> list[ResolvedJob]:
        """Return the same job for each of its partitions alone; none for a job that names fewer than two."""
        names = [name for name in (self._chosen("partition") or "").split(",") if name]
        return [self._with_resources(partition=name) for name in names] if len(names) > 1 else []

    @property
    def directives(self) -> list[tuple[str, str | None]]:
        """The ``#SBATCH`` options as (name, value); a value of None is a flag.

        The job's own resources come first, then the stage's and the cluster's values of the cluster file.
        """
        own, memory = self.job.resources, self._memory()
        given: list[tuple[str, Any]] = [
            ("partition", self._chosen("partition")),
            ("account", self._chosen("account")),
            ("qos", self._chosen("qos")),
            ("reservation", self._chosen("reservation")),
            ("constraint", self._chosen("constraint")),
            ("nodes", own.nodes),
            ("ntasks-per-node", own.ntasks_per_node),
            ("cpus-per-task", self._chosen("cpus_per_task")),
            ("mem", memory.mem if memory else None),
            ("mem-per-cpu", memory.mem_per_cpu if memory else None),
            ("time", self._chosen("time_limit")),
            ("exclude", self._chosen("exclude")),
            ("nodelist", self._nodelist),
        ]
        extra = self._options()
        if own.gpus_per_node:
            given += self._gpus(extra)
        options: list[tuple[str, str | None]] = [(name, str(v)) for name, v in given if v is not None]
        # Without GRES, Slurm does not know whether a node's GPUs are in use.
        if own.exclusive or (own.gpus_per_node and self.cluster.gpu_request == "none"):
            options.append(("exclusive", None))
        if seconds := self.warning_seconds:
            options.append(("signal", f"B:USR1@{seconds}"))
        return options + list(extra.items())

    @property
    def notes(self) -> list[str]:
        """Remarks on options that Slurm accepts, but reads differently than may be meant."""
        names, nodes = self._nodelist, self.job.resources.nodes
        count = count_nodes(names) if names else 0
        if count <= nodes:
            return []
        return [
            f"nodelist {names} names {count} nodes, but the job has {nodes}: Slurm reads it as 'all of these nodes', "
            "and drops the last ones or refuses the job. To let Slurm choose among some nodes use constraint, "
            "reservation, partition or exclude"
        ]

    @property
    def warning_seconds(self) -> int | None:
        """Seconds between Slurm's signal to the job and its time limit; None for no signal."""
        if not self.job.signal_before_timeout:
            return None
        return warning_seconds(self._chosen("time_limit"))

    @property
    def _sources(self) -> list[SlurmDefaults]:
        """The settings that apply to this job, the most specific first."""
        stage = self.cluster.stages.get(self.job.stage or "")  # type: ignore[call-overload]
        return [self.job.resources, *([stage] if stage else []), self.cluster]

    def _chosen(self, name: str) -> Any:
        for source in self._sources:
            value = getattr(source, name)
            # A stage's null overrides the cluster's value. That of a job is only a form field that was left out.
            if value is not None or (isinstance(source, StageDefaults) and name in source.model_fields_set):
                return value
        return None

    def _memory(self) -> SlurmDefaults | None:
        """Return the most specific settings with a memory request: per node or per CPU, never both (sbatch(1))."""
        fields = {"mem", "mem_per_cpu"}
        for source in self._sources:
            stage_null = isinstance(source, StageDefaults) and fields & source.model_fields_set
            if source.mem or source.mem_per_cpu or stage_null:
                return source
        return None

    @property
    def _nodelist(self) -> str | None:
        # The cluster file's node list names GPU nodes: it does not apply to jobs without GPUs.
        chosen: str | None = self._chosen("nodelist")
        only_clusters = not any(source.nodelist for source in self._sources[:-1])
        return None if only_clusters and not self.job.resources.gpus_per_node else chosen

    def _options(self) -> dict[str, str | None]:
        """Return the further options: the more specific ones replace the others by name."""
        merged: dict[str, str | None] = {}
        for source in reversed(self._sources):
            merged |= source.options
        return merged

    def _gpus(self, extra: dict[str, str | None]) -> list[tuple[str, Any]]:
        """Return the request for GPUs; removes --gres from ``extra`` where both are one option."""
        count, kind = self.job.resources.gpus_per_node, self._chosen("gpu_type")
        gpus = f"{kind}:{count}" if kind else count
        if self.cluster.gpu_request == "none":
            return []
        if self.cluster.gpu_request == "gpus-per-node":
            return [("gpus-per-node", gpus)]
        other = extra.pop("gres", None)
        return [("gres", f"gpu:{gpus},{other}" if other else f"gpu:{gpus}")]

    def _with_resources(self, **changes: Any) -> ResolvedJob:
        resources = self.job.resources.model_copy(update=changes)
        return replace(self, job=self.job.model_copy(update={"resources": resources}))
