"""Cases of the project's stages: SFT with wrong inputs, uploads with wrong tokens."""

from __future__ import annotations

import json
import os
from typing import Any

from benchmarks.failures_report.case import DAG, RUN, Case, Site
from llm_bridge.diagnosis.classes import Action
from llm_bridge.operators.hub import HubUploadOperator
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.pipeline import stages
from llm_bridge.pipeline.plan import make_plan
from llm_bridge.slurm.spec import Resources
from testing.causes import CLUSTER_ENV
from testing.hub import HUB_PORT, Hub

READ_ONLY, WRONG = "hf_may_only_read_here", "hf_this_token_is_unknown"
DATA = """\
import pyarrow, pyarrow.parquet, sys
pyarrow.parquet.write_table(pyarrow.table({"n": [*range(64)]}), sys.argv[1])
"""
CHECKPOINT = """\
import json, os, sys
folder = sys.argv[1] + "/global_step_5"
os.makedirs(folder)
json.dump({"world_size": 16}, open(folder + "/fsdp_config.json", "w"))
"""
# An upload loads configuration and tokenizer before it asks the Hub for anything.
MODEL = """\
import os, sys
from tokenizers import Tokenizer, models
os.makedirs(sys.argv[1], exist_ok=True)
header = b'{"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
weights = len(header).to_bytes(8, "little") + header + b"w"
config, tokenizer = b'{"model_type": "llama"}', b'{"tokenizer_class": "PreTrainedTokenizerFast"}'
files = {"config.json": config, "tokenizer_config.json": tokenizer, "model.safetensors": weights}
for name, content in files.items():
    open(f"{sys.argv[1]}/{name}", "wb").write(content)
Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(f"{sys.argv[1]}/tokenizer.json")
"""


def sft(site: Site, options: dict[str, Any]) -> SlurmSubmitOperator:
    """Return the operator of the demo's SFT on one process, without its data."""
    job = stages.sft(make_plan({"recipe": "tiny_cpu", "cluster": site.name}, DAG, RUN))
    own = site.stage(options["task_id"])
    settings = {
        **job.settings,
        "checkpoint_dir": f"{own}/checkpoints",
        "train_files": f"{own}/train.parquet",
        "preflight": None,
    }
    resources = Resources(nodes=1, gpus_per_node=1, cpus_per_task=2, mem="4G")
    changes = {"directory": own, "settings": settings, "resources": resources, "output": None, "hang": None}
    return SlurmSubmitOperator(job=job.model_copy(update=changes), **options)


def other_checkpoint(site: Site) -> None:
    """Write data, and a checkpoint of 16 processes."""
    own, python = site.stage("world_size"), f"{CLUSTER_ENV}/bin/python"
    site.run("login", "mkdir", "-p", own, user="svc")
    site.run("login", python, "-c", DATA, f"{own}/train.parquet", user="svc")
    site.run("login", python, "-c", CHECKPOINT, f"{own}/checkpoints", user="svc")


# ---- uploads


def hub(site: Site) -> None:
    """Start a Hub with one read-only token for all cases, and write a model."""
    tokens = {READ_ONLY: {"user": "alice", "role": "read", "orgs": []}}
    if not Hub(site.cluster, site.include.parent / "hub", tokens).start():
        return
    site.run("login", f"{CLUSTER_ENV}/bin/python", "-c", MODEL, f"{site.workspace}/model", user="svc")


def upload(site: Site, options: dict[str, Any], token: str, cluster: str = "") -> HubUploadOperator:
    """Return the operator of an upload as in the DAGs: a job on the cluster, the token in an Airflow connection."""
    os.environ["AIRFLOW_CONN_HUB"] = json.dumps({"conn_type": "generic", "password": token})
    return HubUploadOperator(
        cluster=cluster or site.name,
        model_dir=f"{site.workspace}/model",
        repo_id="alice/model",
        hub_conn_id="hub",
        **options,
    )


def upload_without_hub(site: Site, options: dict[str, Any]) -> HubUploadOperator:
    """Return the operator of an upload to a port without a listener."""
    name = site.variant("no_hub", variables={"HF_ENDPOINT": f"http://hub:{HUB_PORT + 1}"})
    return upload(site, options, READ_ONLY, cluster=name)


CASES: tuple[Case, ...] = (
    Case("sft_data", "SFT without its training data", "missing_path", Action.STOP,
         "sft_data/train.parquet", sft),
    Case("world_size", "SFT on one process finds a checkpoint of 16", "checkpoint_incompatible", Action.STOP,
         "was written by 16 processes", sft, prepare=other_checkpoint),
    Case("hub_token", "an upload with an unknown token", "token_refused", Action.STOP,
         "refused the token (401)", lambda site, options: upload(site, options, WRONG), prepare=hub),
    Case("hub_read_only", "an upload with a read-only token", "token_refused", Action.STOP,
         "is read-only", lambda site, options: upload(site, options, READ_ONLY), prepare=hub),
    Case("hub_unavailable", "an upload to a Hub that does not listen", "hub_unavailable", Action.LATER,
         "cannot reach the Hub", upload_without_hub, prepare=hub),
)  # fmt: skip
