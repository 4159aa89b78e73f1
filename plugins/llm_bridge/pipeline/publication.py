"""Facts of a run for the model card, and the tags of its model on the Hub."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from llm_bridge.config.loader import load_cluster
from llm_bridge.config.recipe import Stage
from llm_bridge.naming import slug
from llm_bridge.pipeline.plan import TRAINING, Plan
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.hub.tags import LATEST

# Run id of a scheduled or backfilled run, as the name of its directory.
_SCHEDULED = re.compile(r"(?:scheduled|backfill)__(\d{4}-\d{2}-\d{2})T")


def settings(plan: Plan) -> dict[str, Any]:
    """Return the settings of an upload for its card and tags (``remote/node/hub/upload.py``).

    Args:
        plan: The run's plan.
    """
    hub = plan.recipe.hub
    found: dict[str, Any] = {"pull_request": True} if hub.pull_request else {"tags": tags(plan)}
    if hub.card:
        found["card"] = card(plan)
    if plan.recipe.publish.better_than == "published":
        found["better_than_published"] = True
    if hub.keep_published:
        found["keep_published"] = hub.keep_published
    return found


def tags(plan: Plan) -> list[str]:
    """Return the tags that will point to the run's model; a scheduled run has its date as one of them."""
    run = PurePosixPath(plan.directory).name
    date = _SCHEDULED.match(run)
    nightly = [f"nightly-{date[1]}"] if date else []
    return [f"run-{slug(run.replace('..', '.'))}", *nightly, LATEST]


def card(plan: Plan) -> dict[str, Any]:
    """Return the facts for the model card; results of the jobs are read from their directories as it is made."""
    return {
        "recipe": plan.recipe.name,
        "description": plan.recipe.description,
        "run": plan.run_name,
        "base_model": plan.recipe.base_model,
        "base_model_dir": plan.base_model_path,
        "data": {stage: plan.data_dir(stage) for stage in TRAINING if stage in plan.stages},
        "jobs": [
            job
            for stage in TRAINING
            if plan.has(stage) and not plan.given(stage)
            for job in _jobs(plan, stage)
        ],
        "evaluation": plan.stage_dir("evaluate") if "evaluate" in plan.stages else None,
        **({"started_from": plan.start.description} if plan.start else {}),
    }


def _jobs(plan: Plan, stage: Stage) -> list[dict[str, Any]]:
    """Return name, stage directory and number of GPUs of the Slurm jobs that a training may have had."""
    directory = plan.result_dir(stage)
    places = [directory]
    if stage == "ppo":
        places += [f"{directory}/{attempt_dir.PREQUEUED}", f"{directory}/{attempt_dir.RECOVERY}"]
    gpus = plan.nodes(stage) * plan.gpus_per_node(stage, load_cluster(plan.cluster))
    return [{"name": stage, "directory": place, "gpus": gpus} for place in places]
