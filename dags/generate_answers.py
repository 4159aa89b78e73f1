"""Airflow DAG: generate answers with a model from the Hub; an example of a DAG that uses new models.

It runs when triggered. With the environment variable LLM_BRIDGE_ANSWERS_MODEL=OWNER/NAME it also runs after every
upload of that model (Airflow asset `hf://OWNER/NAME`), with the revision that was uploaded. The task's XCom has the
answers.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, Param

from llm_bridge import SlurmJob, SlurmSubmitOperator, model_asset
from llm_bridge.config.loader import available, load_cluster
from llm_bridge.notifications import for_tasks
from llm_bridge.operators.base import task_directory

if TYPE_CHECKING:
    from airflow.sdk import Context

MODEL = os.environ.get("LLM_BRIDGE_ANSWERS_MODEL")
SCRIPT = """#!/bin/bash
python - <<'EOF'
import json, os
from transformers import AutoModelForCausalLM, AutoTokenizer

directory = os.environ["ATTEMPT_DIR"]
with open(f"{directory}/settings.json") as file:
    settings = json.load(file)
name, revision = settings["repo_id"], settings["revision"]
tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
model = AutoModelForCausalLM.from_pretrained(name, revision=revision)
answers = []
for prompt in settings["prompts"]:
    chat = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=settings["max_new_tokens"], do_sample=False)
    text = tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    answers.append({"prompt": prompt, "answer": text})
with open(f"{directory}/result.json", "w") as file:
    json.dump({"repo_id": name, "revision": revision, "answers": answers}, file)
EOF
"""


def published(context: Context) -> tuple[str, str]:
    """Return repository and revision of the newest upload that triggered this run, else those of the form."""
    params: Any = context["params"]
    events: Any
    for events in context["triggering_asset_events"].values():
        extra = events[-1].extra  # without these keys if a person made the event
        return extra.get("repo_id", params["repo_id"]), extra.get("revision", params["revision"])
    return params["repo_id"], params["revision"]


def job(context: Context) -> SlurmJob:
    """Return the job that generates the answers."""
    params: Any = context["params"]
    repo_id, revision = published(context)
    conn_id = load_cluster(params["cluster"]).hub.conn_id
    return SlurmJob(
        cluster=params["cluster"],
        script=SCRIPT,
        settings={
            "repo_id": repo_id,
            "revision": revision,
            "prompts": params["prompts"],
            "max_new_tokens": params["max_new_tokens"],
        },
        directory=task_directory(params["cluster"], context),
        secrets={"hub": conn_id} if conn_id else {},
    )


clusters = available("clusters") or [""]  # without one, the file still parses
with DAG(
    "generate_answers",
    description="Generate answers with a model from the Hub",
    schedule=model_asset(MODEL) if MODEL else None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    is_paused_upon_creation=True,
    params={
        "cluster": Param(clusters[0], enum=clusters, title="Cluster"),
        "repo_id": Param(
            MODEL or "OWNER/NAME",
            type="string",
            title="Hub repository",
            description="After an upload: its own.",
        ),
        "revision": Param(
            "main", type="string", title="Revision", description="Branch, tag (latest-good) or commit."
        ),
        "prompts": Param(["What is 12 times 7?"], type="array", items={"type": "string"}, title="Prompts"),
        "max_new_tokens": Param(256, type="integer", minimum=1, title="Tokens of an answer at most"),
    },
    tags=["llm-bridge"],
    doc_md=__doc__,
    default_args={**for_tasks()},
):
    SlurmSubmitOperator(task_id="generate", job=job)
