"""What to train: ``include/recipes/NAME.yaml``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from llm_bridge.config.hang import Minutes, OnHang
from llm_bridge.config.values import Count, Memory, SlurmWord, Strict, Text, TimeLimit
from llm_bridge.config.verl_keys import translate

# How SFT and PPO come by their nodes: see gsm8k_llama32_1b.yaml.
Allocation = Literal["per_stage", "queue_ahead", "shared"]
Stage = Literal["prepare", "sft", "ppo", "merge", "upload"]
STAGES: tuple[Stage, ...] = ("prepare", "sft", "ppo", "merge", "upload")

# Hub ids and absolute paths. The pattern keeps everything out that means something to a shell, hydra or a URL.
ModelSource = Annotated[
    str,
    Field(
        pattern=r"^(/[A-Za-z0-9_.+=@-]+(/[A-Za-z0-9_.+=@-]+)*|[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*)$",
        description="OWNER/NAME on the Hub, or an absolute path on the cluster",
    ),
]
RepoId = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$", description="OWNER/NAME"),
]
VerlSettings = dict[str, Any]


class Data(Strict):
    """Where the training data come from: a GSM8K-shaped data set with columns ``question`` and ``answer``."""

    source: ModelSource = "openai/gsm8k"
    config: SlurmWord = "main"


class JobSize(Strict):
    """What a stage asks of Slurm; empty means the recipe's or the cluster's value."""

    nodes: Count | None = None
    gpus_per_node: Count | None = None
    cpus_per_task: Count | None = None
    mem: Memory | None = None
    time_limit: TimeLimit | None = None


class TrainStage(JobSize):
    """A training stage: its size, and verl's own settings under verl's own names."""

    keep: Count | None = Field(default=3, description="complete checkpoints that stay; all when empty")
    verl: VerlSettings = {}
    hang_minutes: Minutes | None = Field(default=None, description="the cluster's when empty; 0: never")
    on_hang: OnHang | None = Field(default=None, description="the cluster's when empty")


class Sft(TrainStage):
    """Supervised fine-tuning: ``verl.trainer.sft_trainer``."""

    @field_validator("verl")
    @classmethod
    def _current_names(cls, value: VerlSettings) -> VerlSettings:
        return translate("sft", value)


class Ppo(TrainStage):
    """PPO on a Ray cluster: ``verl.trainer.main_ppo``."""

    init_from: Literal["sft", "base"] = "sft"

    @field_validator("verl")
    @classmethod
    def _current_names(cls, value: VerlSettings) -> VerlSettings:
        return translate("ppo", value)


class Wandb(Strict):
    """Weights & Biases; the key comes from the cluster file's ``wandb_conn_id``."""

    entity: Text | None = None
    project: Text = "llm-bridge"


class Hub(Strict):
    """Where the trained model goes."""

    repo_id: RepoId | None = None
    private: bool = True


class Recipe(Strict):
    """One training recipe. ``gsm8k_llama32_1b.yaml`` explains the keys."""

    name: SlurmWord
    description: Text = ""
    base_model: ModelSource
    data: Data = Data()
    nodes: Count = 1
    gpus_per_node: Count | None = Field(default=None, description="all of the cluster's when empty")
    allocation: Allocation = "per_stage"
    sft: Sft = Sft()
    ppo: Ppo = Ppo()
    merge: JobSize = JobSize()
    prepare: JobSize = JobSize()
    upload: JobSize = JobSize()
    logger: list[Literal["console", "wandb", "tensorboard", "file", "trackio"]] = ["console"]
    wandb: Wandb = Wandb()
    hub: Hub = Hub()
    cluster: SlurmWord | None = Field(default=None, description="cluster of nightly runs")
    schedule: Text | None = Field(default=None, description="cron line of nightly runs")
