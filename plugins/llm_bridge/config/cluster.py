"""Cluster file: the description of one Slurm site, ``include/clusters/NAME.yaml``."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from llm_bridge.config import sbatch_options
from llm_bridge.config.hang import Minutes, OnHang
from llm_bridge.config.types import (
    AbsolutePath,
    Count,
    FrozenModel,
    GpuType,
    Memory,
    OptionName,
    OptionValue,
    SlurmWord,
    Text,
    TimeLimit,
    UrlTemplate,
    VariableName,
)


class Environment(FrozenModel):
    """Environment with Python, torch and verl for jobs: modules first, then one of venv, conda or container.

    Attributes:
        modules: Environment modules to load, in this order.
        module_init: Script that defines ``module``; only used with ``modules``.
        venv: Directory of a virtual environment.
        conda: Directory of a conda environment.
        conda_init: Path of the installation's ``etc/profile.d/conda.sh``; required with ``conda``.
        container: Image: a path, or a reference that the container runtime can pull.
        container_runtime: Program that runs the image.
        container_mounts: Further host paths to mount; the workspace always is.
    """

    modules: list[SlurmWord] = []
    module_init: AbsolutePath = "/etc/profile.d/modules.sh"
    venv: AbsolutePath | None = None
    conda: AbsolutePath | None = None
    conda_init: AbsolutePath | None = None
    container: Text | None = None
    container_runtime: Literal["apptainer", "pyxis"] = "apptainer"
    container_mounts: list[Text] = []

    @field_validator("venv")
    @classmethod
    def _is_directory(cls, value: str | None) -> str | None:
        if value and re.search("/bin/(activate|python[0-9.]*)$", value):
            raise ValueError(
                f"must be the directory of the environment: {re.sub('/bin/[^/]*$', '', value)} (got {value!r})"
            )
        return value

    @model_validator(mode="after")
    def _at_most_one(self) -> Environment:
        given = [name for name in ("venv", "conda", "container") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"set one of venv, conda, container; {' and '.join(given)} are set")
        if self.conda and not self.conda_init:
            raise ValueError("conda needs conda_init, the path of etc/profile.d/conda.sh")
        return self


class SlurmDefaults(FrozenModel):
    """Slurm settings of jobs: of a cluster, of one of its stages, or of one job.

    None means the less specific value: a job's is its stage's, that is the cluster's, and that is Slurm's default.

    Attributes:
        partition: Partition; several (``a,b``, or the key ``partitions: [a, b]``) for the one that can start first.
        account: Account that the jobs are charged to.
        qos: Quality of service.
        reservation: Reservation to run in.
        constraint: Node features, with the operators of sbatch(1).
        nodelist: Nodes that every job with GPUs must get.
        exclude: Nodes that no job may get.
        gpu_type: Type of GPU, where a site has several.
        cpus_per_task: CPUs of the one task per node.
        mem: Memory per node; ``"0"`` requests all of it.
        mem_per_cpu: Memory per CPU, instead of ``mem``.
        time_limit: Time limit in a form of sbatch(1).
        options: Any further option of sbatch by its long name; null makes it a flag.
    """

    partition: SlurmWord | None = None
    account: SlurmWord | None = None
    qos: SlurmWord | None = None
    reservation: SlurmWord | None = None
    constraint: OptionValue | None = None
    nodelist: SlurmWord | None = None
    exclude: SlurmWord | None = None
    gpu_type: GpuType | None = None
    cpus_per_task: Count | None = None
    mem: Memory | None = None
    mem_per_cpu: Memory | None = None
    time_limit: TimeLimit | None = None
    # Any other sbatch option, without the leading dashes; an empty value makes it a flag.
    options: dict[OptionName, OptionValue | None] = {}
    in_cluster_file: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _partitions(cls, values: Any) -> Any:
        """Read ``partitions: [a, b]`` as Slurm's own form of it, ``partition: a,b``."""
        if not isinstance(values, dict) or "partitions" not in values:
            return values
        rest = {key: value for key, value in values.items() if key != "partitions"}
        names = values["partitions"]
        if "partition" in rest:
            raise ValueError("set partition or partitions, not both")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"partitions must be a list of names, such as [a, b] (got {names!r})")
        return {**rest, "partition": ",".join(names)}

    @field_validator("options")
    @classmethod
    def _not_refused(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        if refused := sbatch_options.refusals(list(value), in_cluster_file=cls.in_cluster_file):
            raise ValueError(f"{'; '.join(refused)}: remove it")
        fields = {name.replace("_", "-") for name in cls.model_fields} | {"time", "nodes"}
        if own := sorted(fields & set(value)):
            raise ValueError(f"{', '.join(own)}: use the key of the same name instead (time_limit for time)")
        return value

    @model_validator(mode="after")
    def _one_kind_of_memory(self) -> Self:
        if self.mem and self.mem_per_cpu:
            raise ValueError("set mem (per node) or mem_per_cpu, not both: Slurm refuses a job with both")
        return self


class StageDefaults(SlurmDefaults):
    """Slurm settings of one stage that differ from the cluster's; null means Slurm's default, not the cluster's."""


class RaySettings(FrozenModel):
    """Settings of Ray on this cluster's nodes.

    Attributes:
        temp_dir: Ray's directory on a node; short, because the path of a Unix socket has at most 107 bytes.
    """

    ready_minutes: float = Field(default=15, gt=0, description="deadline for every node to have joined")
    object_store_gib: float | None = Field(
        default=None, gt=0, description="per node; Ray's default when empty"
    )
    cpus_per_node: Count | None = Field(default=None, description="Ray CPUs; the allocation's when empty")
    temp_dir: AbsolutePath = "/tmp/ray"
    idle_minutes: float | None = Field(
        default=30, gt=0, description="time without a job after which a cluster ends itself"
    )
    dashboard_url: UrlTemplate | None = Field(
        default=None,
        description="URL of a Ray dashboard for browsers: {host} and {port} are its address on the cluster",
    )


class Preflight(FrozenModel):
    """Requirements on a node before SFT or Ray starts on it; ``preflight: null`` in a cluster file skips the check."""

    min_free_gib: float = Field(default=10, ge=0, description="on the workspace and on the node's disk")
    max_clock_skew_seconds: float = Field(default=5, gt=0, description="between node and file server")
    all_reduce_seconds: float = Field(
        default=120, ge=0, description="limit of the all-reduce test; 0 skips it"
    )
    min_gib_per_second: float | None = Field(
        default=None, gt=0, description="lowest rate of the all-reduce test; any when empty"
    )

    @model_validator(mode="after")
    def _rate_is_measured(self) -> Self:
        if self.min_gib_per_second and not self.all_reduce_seconds:
            raise ValueError("min_gib_per_second needs the all-reduce test: set all_reduce_seconds above 0")
        return self


class HubSettings(FrozenModel):
    """Token with which jobs on this cluster access the Hub."""

    conn_id: Text | None = Field(default=None, description="Airflow connection whose password is the token")
    token_file: AbsolutePath | None = Field(default=None, description="instead: a token file on the cluster")


class RpcBudget(FrozenModel):
    """Rate limit of the site for Slurm commands."""

    burst: Count = Field(description="commands at once")
    per_minute: float = Field(gt=0, description="commands in the long run")


class Cluster(SlurmDefaults):
    """One Slurm site. ``include/clusters/example.yaml`` explains every key.

    Attributes:
        name: Name of the file; not a key.
        description: Title in the trigger form.
        ssh_conn_id: Airflow connection of type SSH to the login node; null if Airflow runs on it.
        workspace: Directory on a file system that login and compute nodes share under this path.
        gpus_per_node: GPUs of a node, and of a job on one unless the recipe has another number.
        gpu_request: Option that requests GPUs; ``none`` requests whole nodes.
        device: Kind of device that trainings run on.
        environment: Python environment of the jobs.
        variables: Variables of every job; no secrets, because other users can read a batch script.
        network_interface: Interface for NCCL, Gloo and Ray; theirs when empty.
        stages: Slurm settings of single stages that differ: the keys from ``partition`` to ``options``.
        ray: Ray's settings.
        preflight: Checks of each node before SFT or Ray starts; null skips them.
        hub: Token for the Hub.
        wandb_conn_id: Airflow connection whose password is the key of Weights & Biases.
        rpc_budget: Rate limit for Slurm commands; none when empty.
        on_hang: ``report`` sends an alert; ``retry`` also cancels the job, and the next try resumes.
        login_python: Python 3.6 or newer on the login node.
    """

    name: SlurmWord
    description: Text = ""
    ssh_conn_id: Text | None
    workspace: AbsolutePath
    gpus_per_node: Count
    gpu_request: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    device: Literal["cuda", "cpu"] = "cuda"
    environment: Environment = Environment()
    variables: dict[VariableName, Text] = {}
    network_interface: SlurmWord | None = None
    stages: dict[Literal["prepare", "sft", "merge", "ppo", "evaluate", "upload"], StageDefaults] = {}
    ray: RaySettings = RaySettings()
    preflight: Preflight | None = Preflight()
    hub: HubSettings = HubSettings()
    wandb_conn_id: Text | None = None
    poll_seconds: float = Field(
        default=30, ge=0.5, le=600, description="interval of squeue, one for all jobs"
    )
    rpc_budget: RpcBudget | None = None
    hang_minutes: Minutes | None = Field(
        default=30, description="time without output after which SFT or PPO counts as hung; null or 0: never"
    )
    on_hang: OnHang = "report"
    login_python: AbsolutePath = "/usr/bin/python3"
    slurm_bin: AbsolutePath | None = Field(
        default=None,
        description="directory of Slurm's commands, on login and compute nodes; PATH's when empty",
    )
