"""Attempts whose programs a test runs, and data to train with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_bridge.config.data import Data
from llm_bridge.remote import attempt_dir
from testing.paths import PLUGINS

PREFIX_OUTPUT = PLUGINS / "llm_bridge" / "remote" / "templates" / attempt_dir.PREFIX_OUTPUT


def attempt(root: Path, stage: str, settings: dict[str, Any]) -> Path:
    """Make an attempt's directory with these settings; returns the path of settings.json."""
    directory = root / stage / attempt_dir.attempt_name(1)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / attempt_dir.SETTINGS
    file.write_text(json.dumps(settings), encoding="utf-8")
    return file


def data_entry(
    directory: Path, source: Any, stages: Sequence[str] = ("sft",), **given: Any
) -> dict[str, Any]:
    """Return an entry of prepare's setting ``data``.

    Args:
        directory: Directory for the prepared data.
        source: The data's source.
        stages: Training stages that use them.
        given: Further keys of the recipe's ``data``.
    """
    specification = Data(source=str(source), **given).specification()
    return {"directory": str(directory), "specification": specification, "stages": list(stages)}


def prepared(root: Path, assets: Path, launch: Callable[..., Any]) -> dict[str, Any]:
    """Run the prepare stage on the demo's model and data; return its result: paths, by the names in settings.

    Args:
        root: Directory for data and model.
        assets: The fixture.
        launch: The fixture.
    """
    data = {"data": [data_entry(root / "data", assets / "gsm8k-tiny")]}
    model = {
        "base_model": str(assets / "tiny-llama"),
        "model_dir": str(root / "model"),
        "trust_remote_code": False,
        "trainings": {},
        "chat_templates": {"sft.verl.model.custom_chat_template": None},
    }
    settings = attempt(root, "prepare", {**data, **model})
    done = launch("prepare", settings)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads((settings.parent / attempt_dir.RESULT).read_text())
    return {**result, **result["data"]["sft"]}
