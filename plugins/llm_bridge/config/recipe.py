"""Recipe: model, data and settings of a training, ``include/recipes/NAME.yaml``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llm_bridge.config.algorithm import Algorithm, check_name, with_preset
from llm_bridge.config.data import Data
from llm_bridge.config.evaluation import Evaluation
from llm_bridge.config.hang import Minutes, OnHang
from llm_bridge.config.loggers import Loggers
from llm_bridge.config.publish import Publish, read_publish
from llm_bridge.config.reward import Reward, Trial, read_reward
from llm_bridge.config.types import Count, CronLine, FrozenModel, HubId, HubIdOrPath, JobSize, SlurmWord, Text
from llm_bridge.config.verl_settings import translate

# How nodes are allocated to SFT and PPO: see gsm8k_llama32_1b.yaml.
Allocation = Literal["per_stage", "queue_ahead", "shared"]
Stage = Literal["prepare", "sft", "ppo", "merge", "evaluate", "upload"]
STAGES: tuple[Stage, ...] = ("prepare", "sft", "ppo", "merge", "evaluate", "upload")

VerlSettings = dict[str, Any]
# YAML 1.1 reads a plain off as false.
Tune = Annotated[
    Literal["off", "suggest", "apply"], BeforeValidator(lambda value: "off" if value is False else value)
]


class TrainStage(JobSize):
    """A training stage: its size, its data, and verl's own settings under verl's own names.

    Attributes:
        verl: verl's settings under verl's names.
    """

    data: Data | None = Field(default=None, description="the recipe's when empty")
    keep: Count | None = Field(default=3, description="newest complete checkpoints to keep; all when empty")
    verl: VerlSettings = {}
    hang_minutes: Minutes | None = Field(default=None, description="the cluster's when empty; 0: never")
    on_hang: OnHang | None = Field(default=None, description="the cluster's when empty")


class Sft(TrainStage):
    """Supervised fine-tuning: ``verl.trainer.sft_trainer``."""

    tune: Tune = Field(
        default="off",
        description="measure faster settings in SFT's job for up to five minutes: report them, or train with them",
    )

    @field_validator("verl")
    @classmethod
    def _current_names(cls, value: VerlSettings) -> VerlSettings:
        return translate("sft", value)


class Ppo(TrainStage):
    """Reinforcement learning on a Ray cluster: ``verl.trainer.main_ppo``.

    ``verl`` has the settings of ``algorithm`` too, under the recipe's own.

    Attributes:
        init_from: Model that the training starts from.
        reward_trial: Action when the reward does not prefer the reference answers in ``prepare``.
        algorithm: Preset of verl's settings.
    """

    init_from: Literal["sft", "base"] = "sft"
    reward: Annotated[Reward | None, BeforeValidator(read_reward)] = Field(
        default=None, description="verl's own choice by the data's data_source when empty"
    )
    reward_trial: Trial = "refuse"
    algorithm: Algorithm = "ppo"

    @field_validator("verl")
    @classmethod
    def _current_names(cls, value: VerlSettings) -> VerlSettings:
        return translate("ppo", value)

    @field_validator("algorithm", mode="before")
    @classmethod
    def _known_algorithm(cls, value: Any) -> Any:
        return check_name(value)

    @model_validator(mode="after")
    def _with_preset(self) -> Ppo:
        verl = with_preset(self.algorithm, self.verl)
        return self if verl == self.verl else self.model_copy(update={"verl": verl})


class Wandb(FrozenModel):
    """Weights & Biases; the key comes from the cluster file's ``wandb_conn_id``.

    Attributes:
        entity: User or team; the default of the key when empty.
        project: Project of the runs.
    """

    entity: Text | None = None
    project: Text = "llm-bridge"


class Hub(FrozenModel):
    """Destination of the trained model on the Hub.

    Attributes:
        repo_id: Repository, ``OWNER/NAME``; the trigger form can override it.
        private: Create a private repository.
    """

    repo_id: HubId | None = None
    private: bool = True
    lora: Literal["merged", "adapter"] = Field(
        default="merged", description="form of a model trained with LoRA: whole, or only the adapter"
    )
    card: bool = Field(default=True, description="add a model card, unless a person wrote one")
    keep_published: Count | None = Field(
        default=None, description="newest nightly-DATE tags to keep; all when empty"
    )
    pull_request: bool = Field(
        default=False, description="open a pull request instead of a commit on main; no tags are moved"
    )

    @model_validator(mode="after")
    def _tags_of_a_commit(self) -> Hub:
        if self.pull_request and self.keep_published:
            raise ValueError("keep_published counts tags, and a pull_request moves none: remove one of them")
        return self


class Recipe(FrozenModel):
    """One training recipe. ``gsm8k_llama32_1b.yaml`` explains the keys.

    Attributes:
        name: Name of the file; not a key.
        description: Title in the trigger form.
        base_model: Model on the Hub (``OWNER/NAME``), or an absolute path on the cluster.
        data: Training data of SFT and RL.
        nodes: Nodes of SFT and RL.
        allocation: Allocation of nodes to SFT and RL.
        sft: Supervised fine-tuning.
        ppo: Reinforcement learning, with PPO or another algorithm.
        merge: Resources of the merge of checkpoints into a model.
        prepare: Resources of the download and the preparation of data.
        upload: Resources of the upload.
        logger: Destinations of metrics.
        wandb: Run at Weights & Biases.
        hub: Repository on the Hub.
        publish: Conditions of a publication.
    """

    name: SlurmWord
    description: Text = ""
    base_model: HubIdOrPath
    data: Data = Data()
    nodes: Count = 1
    gpus_per_node: Count | None = Field(default=None, description="all of the cluster's when empty")
    allocation: Allocation = "per_stage"
    stages: list[Stage] = Field(
        default=list(STAGES), min_length=1, description="stages of a run whose trigger form selects none"
    )
    sft: Sft = Sft()
    ppo: Ppo = Ppo()
    merge: JobSize = JobSize()
    evaluate: Evaluation | None = Field(
        default=None, description="without it, models are not evaluated and the stage does not run"
    )
    prepare: JobSize = JobSize()
    upload: JobSize = JobSize()
    logger: Loggers = ["console"]
    wandb: Wandb = Wandb()
    hub: Hub = Hub()
    publish: Annotated[Publish, BeforeValidator(read_publish)] = Publish()
    cluster: SlurmWord | None = Field(
        default=None, description="cluster of runs whose trigger form selects none, such as nightly ones"
    )
    clusters: list[SlurmWord] = Field(
        default=[], description="instead: several, of which a run takes the one that can start it first"
    )
    schedule: CronLine | None = Field(default=None, description="cron line of nightly runs")
    skip_unchanged: bool = Field(
        default=True, description="nightly runs train nothing if an earlier one has trained the same"
    )
    keep_runs: Count | None = Field(
        default=None,
        description="newest trained runs of the nightly DAG to keep on the cluster; all when empty",
    )

    @field_validator("clusters")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError(f"names a cluster twice: {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def _cluster_or_clusters(self) -> Recipe:
        if self.cluster and self.clusters:
            raise ValueError("set cluster or clusters, not both")
        return self
