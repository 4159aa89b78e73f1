"""Keys of a recipe that have a field of their own in the trigger form; an empty field keeps the recipe's value.

A field has the name of its key: ``data.max_rows``, and for verl's own keys, as in *Overrides*, ``sft.KEY`` and
``ppo.KEY``. Type, limits, valid values and description of the recipe's keys are those of its models. Verl's keys have
no models here, so theirs stand in ``KEYS``; ``tests/verl`` compares them with the pinned verl.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from llm_bridge.config.data import Data, Source
from llm_bridge.config.descriptions import descriptions
from llm_bridge.config.loader import describe_errors, load_recipe, recipe_values
from llm_bridge.config.overrides import Override
from llm_bridge.config.publish import Short, read_publish
from llm_bridge.config.recipe import Recipe
from llm_bridge.config.types import Count, FrozenModel, Text
from llm_bridge.config.verl_settings import Training, flatten
from llm_bridge.exceptions import ConfigError

Rate = Annotated[float, Field(gt=0, le=1)]
Coefficient = Annotated[float, Field(ge=0, le=10)]
Temperature = Annotated[float, Field(gt=0, le=5)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Rank = Annotated[int, Field(ge=0, le=4096)]
SaveSteps = Annotated[int, Field(ge=-1, le=100_000)]
# A number as somebody types it: Airflow's field for numbers takes no exponent.
NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
NOT_IN_RECIPE = "not in the recipe"
# Keys that describe the recipe's own source of data, and go with it.
_OF_SOURCE = ("sources", "config", "revision", "split", "test_split")
ALGORITHM = "ppo.algorithm"
# Settings of verl that decide the algorithm, or that only some algorithms use.
_OF_ALGORITHM = ("critic.", "algorithm.adv_estimator")


@dataclass(frozen=True)
class RecipeKey:
    """Key of a recipe with a field in the form.

    Attributes:
        section: Section of the form.
        name: Name of field and key.
        title: Name for people.
        examples: Values that the form suggests; numbers with a fraction need some.
        type: Type of the value; None for that of the recipe's model.
        about: Description; empty for that of the recipe's model, which verl's keys do not have.
    """

    section: str
    name: str
    title: str
    examples: tuple[Any, ...] = ()
    type: Any = None
    about: str = ""

    @property
    def path(self) -> list[str]:
        """The parts of the name."""
        return self.name.split(".")

    @property
    def verl(self) -> tuple[Training, str] | None:
        """Stage and key of a setting of verl; None for a key of the recipe itself, which has no section in a stage."""
        stage, _, key = self.name.partition(".")
        return (cast("Training", stage), key) if stage in get_args(Training) and "." in key else None

    @property
    def value_type(self) -> Any:
        """Type of the value, with its limits."""
        if self.type is not None:
            return self.type
        field = self._field()[1]
        return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation

    @property
    def description(self) -> str:
        """Description, without what holds for a key that the recipe leaves out."""
        if self.about:
            return self.about
        model, _ = self._field()
        parts = descriptions(model)[self.path[-1]].replace("``", "").split("; ")
        text = "; ".join(part for part in parts if "when empty" not in part).rstrip(".")
        return f"{text[:1].upper()}{text[1:]}."

    def schema(self) -> dict[str, Any]:
        """Return type, limits and valid values as JSON schema, of a value that is not empty."""
        found = TypeAdapter(self.value_type).json_schema()
        options = found.get("anyOf", [found])
        (schema,) = (option for option in options if option.get("type") != "null")
        return {key: value for key, value in schema.items() if key != "default"}

    def read(self, value: Any) -> Any:
        """Return a value of the form as the recipe's.

        Raises:
            ValidationError: It is none.
        """
        if self.schema().get("type") == "number" and isinstance(value, str) and re.fullmatch(NUMBER, value):
            value = float(value)
        return TypeAdapter(self.value_type).validate_python(value)

    def _field(self) -> tuple[type[FrozenModel], FieldInfo]:
        """Return the field of the recipe's models, and the model that describes it."""
        model: type[FrozenModel] = Recipe
        for part in self.path[:-1]:
            model = _model_in(model.model_fields[part].annotation)
        name = self.path[-1]
        described = Source if model is Data and name in Source.model_fields else model
        return described, model.model_fields[name]


def _model_in(annotation: Any) -> type[FrozenModel]:
    """Return the model in an annotation such as ``Evaluation | None``."""
    candidates = (annotation, *get_args(annotation))
    return next(each for each in candidates if isinstance(each, type) and issubclass(each, FrozenModel))


_LR = ("1e-6", "5e-6", "1e-5", "2e-5")
_LIMITS = ("2:00:00", "1-12:00:00")
_ACTOR = "ppo.actor_rollout_ref"
KEYS: dict[str, RecipeKey] = {
    key.name: key
    for key in (
        RecipeKey("Model", "ppo.init_from", "Initial model of RL"),
        RecipeKey(
            *("Data", "data.source", "Data set"),
            about="OWNER/NAME on the Hub, or an absolute path or pattern of paths on the cluster, in place of the "
            "recipe's sources, configuration and splits.",
        ),
        RecipeKey("Data", "data.config", "Configuration"),
        RecipeKey("Data", "data.split", "Split"),
        RecipeKey("Data", "data.format", "Format"),
        RecipeKey("Data", "data.max_rows", "Maximum number of rows"),
        RecipeKey("Data", "data.test_fraction", "Held-out share", ("0.02", "0.1")),
        RecipeKey("Data", "data.too_long", "Rows that are too long"),
        RecipeKey("Data", "data.duplicates", "Duplicate rows"),
        RecipeKey("SFT", "sft.trainer.total_epochs", "Epochs", (), Count, "Passes over the data."),
        RecipeKey("SFT", "sft.optim.lr", "Learning rate", _LR, Rate, "The highest one of the schedule."),
        RecipeKey(
            "SFT", "sft.data.train_batch_size", "Batch size", (), Count, "Rows of a step, on all GPUs."
        ),
        RecipeKey(
            *("SFT", "sft.data.micro_batch_size_per_gpu", "Micro batch size", (), Count),
            "Rows that a GPU processes at once: a divisor of its part of the batch. Lower it if memory runs out.",
        ),
        RecipeKey("SFT", "sft.data.max_length", "Maximum length", (), Count, "Tokens of a row."),
        RecipeKey("SFT", "sft.model.lora_rank", "LoRA rank", (), Rank, "0 trains all weights."),
        RecipeKey(
            "SFT", "sft.model.lora_alpha", "LoRA alpha", (), Count, "The adapter is scaled by alpha / rank."
        ),
        RecipeKey("SFT", "sft.trainer.seed", "Seed", (), Seed, "Seed of the order of the rows."),
        RecipeKey(
            *("SFT", "sft.trainer.save_freq", "Steps between checkpoints", (), SaveSteps),
            "An interrupted job resumes from the newest one. -1: only the last step.",
        ),
        RecipeKey("SFT", "sft.tune", "Tuner"),
        RecipeKey("SFT", "sft.time_limit", "Time limit", _LIMITS),
        RecipeKey("RL", ALGORITHM, "Algorithm"),
        RecipeKey(
            *("RL", "ppo.reward", "Reward"),
            type=Text,
            about="Name of a built-in one (gsm8k, math, exact_match) or of a file in include/rewards.",
        ),
        RecipeKey("RL", "ppo.trainer.total_epochs", "Epochs", (), Count, "Passes over the prompts."),
        RecipeKey(
            *("RL", "ppo.trainer.total_training_steps", "Steps", (), Count), "The training ends after them."
        ),
        RecipeKey("RL", f"{_ACTOR}.actor.optim.lr", "Learning rate", _LR, Rate, "That of the actor."),
        RecipeKey("RL", "ppo.data.train_batch_size", "Prompts per step", (), Count, "On all GPUs."),
        RecipeKey(
            *("RL", f"{_ACTOR}.rollout.n", "Answers to each prompt", (), Count),
            "All algorithms but ppo, reinforce_plus_plus and remax compare them: at least 2.",
        ),
        RecipeKey(
            *("RL", f"{_ACTOR}.rollout.temperature", "Temperature", ("0.6", "1.0"), Temperature),
            "Sampling temperature of the answers.",
        ),
        RecipeKey("RL", "ppo.data.max_prompt_length", "Maximum length of a prompt", (), Count, "In tokens."),
        RecipeKey(
            "RL", "ppo.data.max_response_length", "Maximum length of an answer", (), Count, "In tokens."
        ),
        RecipeKey(
            *("RL", f"{_ACTOR}.actor.kl_loss_coef", "KL coefficient in the loss"),
            *(("0.001", "0.01"), Coefficient),
            "Of algorithms with KL in the loss (actor.use_kl_loss), such as grpo.",
        ),
        RecipeKey(
            *("RL", "ppo.algorithm.kl_ctrl.kl_coef", "KL coefficient in the reward"),
            *(("0.001", "0.01"), Coefficient),
            "Of algorithms with KL in the reward (algorithm.use_kl_in_reward), such as rloo.",
        ),
        RecipeKey("RL", "ppo.data.seed", "Seed", (), Seed, "Seed of the order of the prompts."),
        RecipeKey(
            *("RL", "ppo.trainer.save_freq", "Steps between checkpoints", (), SaveSteps),
            "An interrupted job resumes from the newest one. -1: only the last step.",
        ),
        RecipeKey("RL", "ppo.time_limit", "Time limit", _LIMITS),
        RecipeKey("Evaluation", "evaluate.rows", "Rows"),
        RecipeKey("Evaluation", "evaluate.samples", "Samples"),
        RecipeKey("Evaluation", "evaluate.decoding.temperature", "Temperature", ("0.0", "1.0")),
        RecipeKey("Evaluation", "evaluate.decoding.max_tokens", "Maximum length of an answer"),
        RecipeKey("Evaluation", "evaluate.seed", "Seed"),
        RecipeKey("Evaluation", "evaluate.harness", "Tasks of lm-evaluation-harness"),
        RecipeKey(
            *("Publishing", "publish", "Publish"),
            type=Short,
            about="Always, after the approval of a person, or never, in place of the recipe's conditions. Those below "
            "are added.",
        ),
        RecipeKey("Publishing", "publish.better_than", "Better than"),
        RecipeKey("Publishing", "publish.min_score", "Lowest score", ("0.4",)),
        RecipeKey("Publishing", "hub.private", "Private repository"),
        RecipeKey("Publishing", "hub.pull_request", "Pull request"),
        RecipeKey("Publishing", "hub.lora", "Model trained with LoRA"),
    )
}


def given_in(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the form that are not empty, in the order of ``KEYS``.

    Args:
        params: All fields of the form.
    """
    found = {}
    for name in KEYS:
        value = params.get(name)
        if isinstance(value, str):
            value = value.strip()
        if isinstance(value, list):
            value = [one for one in value if not isinstance(one, str) or one.strip()]
        if value not in (None, "", []):
            found[name] = value
    return found


def load_with(name: str, given: Mapping[str, Any]) -> tuple[Recipe, list[str]]:
    """Return a recipe as if its file had the values of the form, and what they change: ``KEY: OLD -> NEW``.

    Args:
        name: Name of the recipe.
        given: Result of :func:`given_in`.

    Raises:
        ConfigError: The recipe is wrong; or names every field whose value is none, or does not fit to the recipe.
    """
    recipe = load_recipe(name)
    if not given:
        return recipe, []
    values = _read(given)
    file = copy.deepcopy(recipe_values(name))
    changes: list[str] = []
    if "data.source" in values and isinstance(file.get("data"), dict):
        for key in _OF_SOURCE:
            file["data"].pop(key, None)
    if ALGORITHM in values and values[ALGORITHM] != recipe.ppo.algorithm:
        changes += _without_algorithm(file, values[ALGORITHM])
    for field, value in values.items():
        old = _set(file, KEYS[field], value)
        if old != repr(value):
            changes.append(f"{field}: {old} -> {value!r}")
    try:
        changed = Recipe.model_validate({"name": name, **file})
    except ValidationError as error:
        raise describe_errors(error, Recipe, f"include/recipes/{name}.yaml with the trigger form") from None
    unused = [field for field in values if field.startswith("data.")]
    if unused and changed.sft.data and changed.ppo.data:
        raise ConfigError(
            f"the trigger form: {', '.join(unused)} would change nothing, because sft and ppo have data of their own "
            f"in include/recipes/{name}.yaml: change it there"
        )
    return changed, changes


def set_twice(given: Mapping[str, Any], overrides: list[Override]) -> Iterator[str]:
    """Yield the settings of verl that a field and a line of *Overrides* both set.

    Args:
        given: Result of :func:`given_in`.
        overrides: The lines.
    """
    for override in overrides:
        name = f"{override.stage}.{override.key.lstrip('+')}"
        if name in given:
            key = KEYS[name]
            yield (
                f"line {override.line}: {name} is the field {key.title!r} of section {key.section}, which is set, too: "
                "remove one of them"
            )


def messages(error: ValidationError) -> list[str]:
    """Return the texts of an error about one value, each once.

    Args:
        error: Raised by :meth:`RecipeKey.read`.
    """
    texts = (finding["msg"].removeprefix("Value error, ") for finding in error.errors())
    return list(dict.fromkeys(texts))


def _read(given: Mapping[str, Any]) -> dict[str, Any]:
    values, problems = {}, []
    for name, value in given.items():
        key = KEYS[name]
        try:
            values[name] = key.read(value)
        except ValidationError as error:
            text = "; ".join(messages(error))
            problems.append(f"{name} ({key.section}, {key.title}): {text} (got {value!r})")
    if problems:
        raise ConfigError("the trigger form:\n  - " + "\n  - ".join(problems), problems)
    return values


def _set(file: dict[str, Any], key: RecipeKey, value: Any) -> str:
    """Set a key in the values of a recipe's file, and return the text of what it was."""
    if key.verl:
        stage, name = key.verl
        verl = _verl_of(file, stage)
        # A key keeps its "+" from the recipe, and its place.
        name = next((each for each in verl if each.lstrip("+") == name), name)
        old = repr(verl[name]) if name in verl else NOT_IN_RECIPE
        verl[name] = value
        return old
    parent = file
    for part in key.path[:-1]:
        below = parent.get(part)
        parent[part] = read_publish(below) if part == "publish" else below or {}
        parent = parent[part]
    name = key.path[-1]
    old = repr(parent[name]) if name in parent else NOT_IN_RECIPE
    parent[name] = value
    return old


def _without_algorithm(file: dict[str, Any], algorithm: str) -> Iterator[str]:
    """Remove the settings that belong to the recipe's own algorithm, and yield each."""
    verl = _verl_of(file, "ppo")
    for name in [each for each in verl if each.lstrip("+").startswith(_OF_ALGORITHM)]:
        plain = name.lstrip("+")
        if algorithm == "ppo" and plain.startswith("critic."):
            continue
        yield f"ppo.{plain}: {verl.pop(name)!r} -> not set, because of algorithm {algorithm}"


def _verl_of(file: dict[str, Any], stage: str) -> dict[str, Any]:
    """Return the settings of verl of a stage in the values of a recipe's file, flat, to be changed."""
    section = file[stage] = file.get(stage) or {}
    section["verl"] = flatten(section.get("verl") or {})
    settings: dict[str, Any] = section["verl"]
    return settings
