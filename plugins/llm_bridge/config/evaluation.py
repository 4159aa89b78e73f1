"""The recipe's ``evaluate``: rows, decoding and tasks with which the models of a run are compared."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from llm_bridge.config.types import Count, FrozenModel, Hours, JobSize, matching

# Tasks go to lm_eval as one argument, separated by commas.
HarnessTask = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_][A-Za-z0-9_.-]*", "the name of a task of lm-evaluation-harness, such as hellaswag"
    ),
]


class Decoding(FrozenModel):
    """Decoding of the answers, the same for all models. ``temperature: 0`` always takes the likeliest token.

    Attributes:
        temperature: Sampling temperature; 0 always takes the likeliest token.
        top_p: Share of probability that tokens are sampled from.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Count | None = Field(
        default=None,
        description="tokens of an answer; ppo.verl's data.max_response_length, or else verl's 512, when empty",
    )


class Evaluation(JobSize):
    """Evaluation of base, SFT and RL model on the held-out rows, with the recipe's reward.

    Attributes:
        seed: Seed of the rows and of sampling.
        decoding: Decoding of the answers.
        harness: Tasks of lm-evaluation-harness, where it is installed.
    """

    rows: Count | None = Field(
        default=500, description="drawn from the test split by the seed; all when empty"
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    samples: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="answers to each prompt")
    decoding: Decoding = Decoding()
    harness: list[HarnessTask] = []
    harness_chat_template: bool = Field(
        default=False, description="questions of the harness in the chat template of each model"
    )
    harness_hours: Hours | None = Field(
        default=None, description="time limit of the harness for each model; none when empty"
    )

    @field_validator("nodes")
    @classmethod
    def _one_node(cls, value: int | None) -> int | None:
        if value is not None and value > 1:
            raise ValueError("the evaluation runs on one node: remove nodes, and set gpus_per_node instead")
        return value

    @field_validator("harness", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("harness")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if twice := [task for task, number in Counter(value).items() if number > 1]:
            raise ValueError(f"names {', '.join(twice)} more than once: name each task once")
        return value

    @model_validator(mode="after")
    def _different_samples(self) -> Evaluation:
        if self.samples > 1 and self.decoding.temperature == 0:
            raise ValueError(
                f"samples: {self.samples} answers to a prompt are all the same at temperature 0: set "
                "decoding.temperature, such as 1.0, or samples to 1"
            )
        return self

    @model_validator(mode="after")
    def _settings_of_a_harness(self) -> Evaluation:
        given = [key for key in ("harness_chat_template", "harness_hours") if getattr(self, key)]
        if given and not self.harness:
            raise ValueError(
                f"{' and '.join(given)} would have no effect without tasks: set harness, such as [hellaswag], or "
                f"remove {' and '.join(given)}"
            )
        return self
