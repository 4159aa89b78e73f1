"""Trigger form of the post-training DAGs: the few fields that matter first, then sections."""

from __future__ import annotations

import os
from typing import Any, get_args

from airflow.sdk import Param

from llm_bridge.config.loader import titles
from llm_bridge.config.recipe import STAGES, Allocation
from llm_bridge.config.recipe_keys import KEYS, NUMBER, RecipeKey
from llm_bridge.pipeline.start import StartStage

# Names the recipe that the form of post_training preselects.
RECIPE_VARIABLE = "LLM_BRIDGE_RECIPE"
FROM_RECIPE = "(from the recipe)"


def form(recipe: str | None = None) -> dict[str, Param]:
    """Return the fields of the trigger form, the most used first; an empty field means the recipe's value.

    Args:
        recipe: Preselected recipe; when empty that of the environment variable LLM_BRIDGE_RECIPE, or the first one.
    """
    recipes, clusters = titles("recipes"), titles("clusters")
    preset = os.environ.get(RECIPE_VARIABLE, "")
    return {
        "recipe": Param(
            recipe or (preset if preset in recipes else next(iter(recipes))),
            enum=list(recipes),
            values_display=recipes,
            title="Recipe",
            description="Model, data and settings of the training: a file in include/recipes.",
        ),
        "cluster": Param(
            None,
            enum=[None, *clusters],
            values_display={"None": FROM_RECIPE, **clusters},
            title="Cluster",
            description=(
                "Slurm cluster to train on: a file in include/clusters. Empty: from the recipe; if that names several, "
                "the one that can start the run first."
            ),
        ),
        "run_name": Param(
            None,
            type=["null", "string"],
            maxLength=100,
            title="Run name",
            description="Name of the experiment in W&B. Empty: the run id.",
        ),
        "base_model": Param(
            None,
            type=["null", "string"],
            section="Model",
            title="Base model",
            description="OWNER/NAME on the Hub, or an absolute path on the cluster. Empty: from the recipe.",
        ),
        **recipe_fields("Model"),
        **recipe_fields("Data"),
        **recipe_fields("SFT"),
        **recipe_fields("RL"),
        **recipe_fields("Evaluation"),
        "repo_id": Param(
            None,
            type=["null", "string"],
            section="Publishing",
            title="Hub repository",
            description="OWNER/NAME of the repository that the model is uploaded to. Empty: from the recipe.",
        ),
        **recipe_fields("Publishing"),
        "nodes": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            section="Allocation",
            title="Nodes",
            description="Number of nodes for SFT, and the same for PPO. Empty: from the recipe.",
        ),
        "allocation": Param(
            None,
            enum=[None, *get_args(Allocation)],
            values_display={
                "None": FROM_RECIPE,
                "per_stage": "per_stage: a Slurm job for SFT, then another for PPO",
                "queue_ahead": "queue_ahead: PPO's job is queued while SFT runs",
                "shared": "shared: one Slurm job for SFT and PPO",
            },
            section="Allocation",
            title="Allocation",
            description=(
                "Slurm jobs of SFT and PPO. queue_ahead and shared wait for a busy cluster's queue only once; see "
                "docs/every-day.md."
            ),
        ),
        "stages": Param(
            [],
            type=["null", "array"],  # without "null" the form marks it as required
            items={"type": "string", "enum": list(STAGES)},
            examples=list(STAGES),
            section="Stages",
            title="Stages",
            description=(
                "Stages that are not selected are skipped. Without sft, PPO starts from the base model. Empty: those "
                "of the recipe, or all."
            ),
        ),
        "force_stages": Param(
            [],
            type=["null", "array"],
            items={"type": "string", "enum": list(STAGES)},
            examples=list(STAGES),
            section="Stages",
            title="Stages to run again",
            description=(
                "When this run is cleared later, these stages run again from zero. Other finished stages are not run "
                "again."
            ),
        ),
        "start_stage": Param(
            None,
            enum=[None, *get_args(StartStage)],
            values_display={
                "None": "(the first one)",
                "ppo": "ppo: from a model, or after SFT of another run",
                "merge": "merge: from checkpoints of RL, or after PPO of another run",
                "evaluate": "evaluate: a model, or that of another run",
                "upload": "upload: a model, or that of another run",
            },
            section="Start from",
            title="First stage",
            description=(
                "Earlier stages do not run; what follows takes Start from instead. Data are prepared in any case."
            ),
        ),
        "start_from": Param(
            None,
            type=["null", "string"],
            maxLength=500,
            section="Start from",
            title="Start from",
            description=(
                "Another run of this DAG (its run id) or of any DAG (its directory on the cluster), whose finished "
                "stages are taken over; or a model: OWNER/NAME on the Hub, or an absolute path on the cluster; for "
                "merge the path of checkpoints. Empty: nothing."
            ),
        ),
        "overrides": Param(
            None,
            type=["null", "string"],
            format="multiline",
            section="Settings of verl",
            title="Overrides",
            description=(
                "Settings of verl that differ from the recipe's, one a line: sft.KEY=VALUE or ppo.KEY=VALUE, such as "
                "ppo.actor_rollout_ref.rollout.n=8. A + in front adds a key that verl's own files do not have."
            ),
        ),
    }


def recipe_fields(section: str) -> dict[str, Param]:
    """Return the fields of a section for keys of the recipe, which are empty at first.

    Args:
        section: Title of the section.
    """
    return {key.name: _recipe_field(key) for key in KEYS.values() if key.section == section}


def _recipe_field(key: RecipeKey) -> Param:
    """Return the field of a key, with the widget in which its values can be typed.

    A choice has "from the recipe" among its options. A switch would have only two states, and Airflow's widget for
    numbers takes no exponent: so both of these are others.
    """
    schema: dict[str, Any] = key.schema()
    kind = schema.pop("type")
    if kind == "boolean":
        schema["enum"] = ["true", "false"]
    if options := schema.pop("enum", None):
        texts = (
            {"true": "yes", "false": "no"} if kind == "boolean" else {option: option for option in options}
        )
        schema |= {"enum": [None, *options], "values_display": {"None": FROM_RECIPE, **texts}}
    elif kind == "number":
        schema |= {"type": ["null", "string", "number"], "pattern": NUMBER}
    else:
        schema["type"] = ["null", kind]
    if key.examples:
        schema["examples"] = list(key.examples)
    return Param(
        None,
        section=key.section,
        title=key.title,
        description=f"{key.description} Key: {key.name}",
        **schema,
    )
