"""What several of these tests need: complete settings, and checkpoints as verl leaves them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoints import TRACKER

ROOT = Path(__file__).resolve().parents[2]
JOBS = ROOT / "include" / "jobs"


def attempt(root: Path, stage: str, settings: dict[str, Any]) -> Path:
    """Make an attempt's directory with these settings; returns the path of settings.json."""
    directory = root / stage / "attempt-1"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory / "settings.json"


def prepared(root: Path, assets: Path, launch: Callable[..., Any]) -> dict[str, Any]:
    """What the prepare stage makes of the demo's model and data: paths, by the names that trainings know them by.

    :param assets: and :param launch: the fixtures.
    """
    data = {
        "data_source": str(assets / "gsm8k-tiny"),
        "data_config": "main",
        "data_dir": str(root / "data"),
    }
    model = {"base_model": str(assets / "tiny-llama"), "model_dir": str(root / "model")}
    settings = attempt(root, "prepare", {**data, **model})
    done = launch("prepare.py", settings)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((settings.parent / "result.json").read_text())
    return result


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
