"""Cases of the project's own stages: SFT with wrong inputs, uploads with wrong tokens."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.failures_report.case import DAG, RUN, Case, Site
from benchmarks.failures_report.causes import CLUSTER_ENV
from llm_bridge import stages
from llm_bridge.failures.kinds import Action
from llm_bridge.hub.operators import HubUploadOperator
from llm_bridge.plan import make_plan
from llm_bridge.slurm.job import Resources
from llm_bridge.slurm.operators import SlurmSubmitOperator
from tests.alerts.sinks import free_port

ROOT = Path(__file__).resolve().parents[2]
HUB_PORT = 8090
READ_ONLY, WRONG = "hf_may_only_read_here", "hf_nobody_knows_this_one"
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


def sft(site: Site, options: dict[str, Any]) -> SlurmSubmitOperator:
    """The demo's SFT on one process, before anybody has prepared its data."""
    job = stages.sft(make_plan({"recipe": "tiny_cpu", "cluster": site.name}, DAG, RUN))
    own = site.stage(options["task_id"])
    settings = {
        **job.settings,
        "checkpoint_dir": f"{own}/checkpoints",
        "train_files": f"{own}/train.parquet",
        "preflight": None,
    }
    resources = Resources(nodes=1, gpus_per_node=1, cpus_per_task=2, mem="4G")
    changes = {"directory": own, "settings": settings, "resources": resources, "result": None, "hang": None}
    return SlurmSubmitOperator(job=job.model_copy(update=changes), **options)


def other_checkpoint(site: Site) -> None:
    """A checkpoint that 16 processes have written, and data."""
    own, python = site.stage("world_size"), f"{CLUSTER_ENV}/bin/python"
    site.run("login", "mkdir", "-p", own, user="svc")
    site.run("login", python, "-c", DATA, f"{own}/train.parquet", user="svc")
    site.run("login", python, "-c", CHECKPOINT, f"{own}/checkpoints", user="svc")


# ---- uploads


def hub(site: Site) -> None:
    """A Hub beside the cluster, for all cases, that knows one token, which may read only; and a model."""
    tokens = site.include.parent / "tokens.json"
    if tokens.exists():  # a second Hub under the same address would be looked for in vain for a while (ARP)
        return
    tokens.write_text(json.dumps({READ_ONLY: {"user": "alice", "role": "read", "orgs": []}}))
    root = str(site.include.parent / "hub")
    argv = [sys.executable, "-m", "local_hub", "--root", root, "--tokens", str(tokens)]
    argv += ["--host", "0.0.0.0", "--port", str(HUB_PORT)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    site.cluster.start_service("hub", listen_port=free_port(), port=HUB_PORT, argv=argv, env=environment)
    files = "for name in config.json tokenizer.json model.safetensors; do echo {} > $name; done"
    folder = f"{site.workspace}/model"
    site.run("login", "sh", "-c", f"mkdir -p {folder} && cd {folder} && {files}", user="svc")


def upload(site: Site, options: dict[str, Any], token: str, cluster: str = "") -> HubUploadOperator:
    """Upload it as the DAGs do: a job on the cluster, the token in an Airflow connection."""
    os.environ["AIRFLOW_CONN_HUB"] = json.dumps({"conn_type": "generic", "password": token})
    return HubUploadOperator(
        cluster=cluster or site.name,
        model_dir=f"{site.workspace}/model",
        repo_id="alice/model",
        hub_conn_id="hub",
        **options,
    )


def upload_to_nobody(site: Site, options: dict[str, Any]) -> HubUploadOperator:
    """The same to a port at which nobody listens."""
    name = site.variant("no_hub", variables={"HF_ENDPOINT": f"http://hub:{HUB_PORT + 1}"})
    return upload(site, options, READ_ONLY, cluster=name)


CASES: tuple[Case, ...] = (
    Case("sft_data", "SFT whose training data nobody has prepared", "missing_path", Action.STOP,
         "sft_data/train.parquet", sft),
    Case("world_size", "SFT finds the checkpoint of 16 processes and has one", "checkpoint_incompatible", Action.STOP,
         "was written by 16 processes", sft, prepare=other_checkpoint),
    Case("hub_token", "an upload with a token that the Hub does not know", "token_refused", Action.STOP,
         "refused the token (401)", lambda site, options: upload(site, options, WRONG), prepare=hub),
    Case("hub_read_only", "an upload with a token that may only read", "token_refused", Action.STOP,
         "is read-only", lambda site, options: upload(site, options, READ_ONLY), prepare=hub),
    Case("hub_away", "an upload to a Hub that does not listen", "hub_away", Action.LATER, "cannot reach the Hub",
         upload_to_nobody, prepare=hub),
)  # fmt: skip
