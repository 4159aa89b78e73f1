"""What llm-bridge knows of one Slurm site: ``include/clusters/NAME.yaml``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm_bridge.config.hang import Minutes, OnHang
from llm_bridge.config.values import (
    AbsolutePath,
    Count,
    Memory,
    SlurmWord,
    Strict,
    Text,
    TimeLimit,
    UrlTemplate,
    VariableName,
)


class Environment(Strict):
    """How a job gets at Python, torch and verl: modules first, then one of venv, conda or container."""

    modules: list[SlurmWord] = []
    module_init: AbsolutePath = "/etc/profile.d/modules.sh"
    venv: AbsolutePath | None = None
    conda: AbsolutePath | None = None
    conda_init: AbsolutePath | None = None
    container: Text | None = None
    container_runtime: Literal["apptainer", "pyxis"] = "apptainer"
    container_mounts: list[Text] = []

    @model_validator(mode="after")
    def _one_way_in(self) -> Environment:
        given = [name for name in ("venv", "conda", "container") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"set one of venv, conda, container; {' and '.join(given)} are set")
        if self.conda and not self.conda_init:
            raise ValueError("conda needs conda_init, the path of etc/profile.d/conda.sh")
        return self


class StageDefaults(Strict):
    """Slurm settings that one stage needs differently on this cluster."""

    partition: SlurmWord | None = None
    account: SlurmWord | None = None
    qos: SlurmWord | None = None
    cpus_per_task: Count | None = None
    mem: Memory | None = None
    time_limit: TimeLimit | None = None


class RaySettings(Strict):
    """How Ray sits on this cluster's nodes."""

    ready_minutes: float = Field(default=15, gt=0, description="deadline for every node to have joined")
    object_store_gib: float | None = Field(
        default=None, gt=0, description="per node; Ray's default when empty"
    )
    cpus_per_node: Count | None = Field(default=None, description="Ray CPUs; the allocation's when empty")
    temp_dir: AbsolutePath = "/tmp/ray"
    idle_minutes: float | None = Field(
        default=30, gt=0, description="ends itself after so long without a job"
    )
    dashboard_url: UrlTemplate | None = Field(
        default=None,
        description="where people reach a Ray dashboard: {host} and {port} are its place on the cluster",
    )


class Preflight(Strict):
    """What a node must have before SFT or Ray starts on it; ``null`` in the cluster file leaves the look out."""

    min_free_gib: float = Field(default=10, ge=0, description="on the workspace and on the node's disk")
    max_clock_skew_seconds: float = Field(default=5, gt=0, description="between node and file server")
    all_reduce_seconds: float = Field(default=120, ge=0, description="limit of the test; 0 leaves it out")


class HubSettings(Strict):
    """How jobs on this cluster reach the Hub."""

    conn_id: Text | None = Field(default=None, description="Airflow connection whose password is the token")
    token_file: AbsolutePath | None = Field(default=None, description="or a token file on the cluster")


class RpcBudget(Strict):
    """How many Slurm commands the site allows."""

    burst: Count = Field(description="at once")
    per_minute: float = Field(gt=0, description="refilled")


class Cluster(Strict):
    """One Slurm site. Every key is explained in ``include/clusters/example.yaml``."""

    name: SlurmWord
    description: Text = ""
    ssh_conn_id: Text | None
    workspace: AbsolutePath
    partition: SlurmWord | None = None
    account: SlurmWord | None = None
    qos: SlurmWord | None = None
    constraint: SlurmWord | None = None
    nodelist: SlurmWord | None = None
    exclude: SlurmWord | None = None
    gpus_per_node: Count
    gpu_request: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    cpus_per_task: Count | None = None
    mem: Memory | None = None
    time_limit: TimeLimit | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    environment: Environment = Environment()
    variables: dict[VariableName, Text] = {}
    network_interface: SlurmWord | None = None
    stages: dict[Literal["prepare", "sft", "merge", "ppo", "upload"], StageDefaults] = {}
    ray: RaySettings = RaySettings()
    preflight: Preflight | None = Preflight()
    hub: HubSettings = HubSettings()
    wandb_conn_id: Text | None = None
    poll_seconds: float = Field(default=20, ge=0.5, le=600, description="between two squeue for all jobs")
    rpc_budget: RpcBudget | None = None
    hang_minutes: Minutes | None = Field(
        default=30, description="SFT and PPO without output; null or 0: never"
    )
    on_hang: OnHang = "report"
    login_python: AbsolutePath = "/usr/bin/python3"
