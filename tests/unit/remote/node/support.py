"""Complete settings of stages, and checkpoints as verl leaves them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llm_bridge.remote.node.hub.model_folder import LocalFile
from llm_bridge.remote.node.verl.checkpoints import TRACKER


def sft_settings(**changes: Any) -> dict[str, Any]:
    """A complete settings.json of the sft stage."""
    return {
        "model_path": "/m",
        "train_files": "/d/train.parquet",
        "val_files": "/d/test.parquet",
        "checkpoint_dir": "/c",
        "device": "cuda",
        "logger": ["console"],
        "project_name": "p",
        "experiment_name": "e",
        "verl": {},
        **changes,
    }


def ppo_settings(**changes: Any) -> dict[str, Any]:
    """A complete settings.json of the ppo stage."""
    own = {"actor_path": "/m", "critic_path": "/m", "nodes": 2, "gpus_per_node": 8}
    settings = {**sft_settings(), **own, **changes}
    del settings["model_path"]
    return settings


def torch_file(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "x" * 100)


def shards(part: Path, processes: int = 2) -> None:
    part.mkdir(parents=True)
    (part / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": processes}))
    for kind in ("model", "optim", "extra_state"):
        for rank in range(processes):
            torch_file(part / f"{kind}_world_size_{processes}_rank_{rank}.pt")


def sft_checkpoint(directory: Path, step: int, processes: int = 2) -> Path:
    checkpoint = directory / f"global_step_{step}"
    shards(checkpoint, processes)
    for rank in range(processes):
        torch_file(checkpoint / f"data_{rank}.pt")
    (directory / TRACKER).write_text(str(step))
    return checkpoint


def ppo_checkpoint(directory: Path, step: int) -> Path:
    checkpoint = directory / f"global_step_{step}"
    shards(checkpoint / "actor")
    shards(checkpoint / "critic")
    torch_file(checkpoint / "data.pt")
    (directory / TRACKER).write_text(str(step))
    return checkpoint


def local_file(path: Path) -> LocalFile:
    """Return a file for an upload, with a stand-in for huggingface_hub's operation."""
    content = path.read_bytes()
    info = SimpleNamespace(size=len(content), sha256=hashlib.sha256(content).digest())
    return LocalFile(path.name, path, SimpleNamespace(upload_info=info))
