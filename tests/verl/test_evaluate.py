"""Program evaluate, run as the job runs it, on the demo's model."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from tests.verl.support import attempt, prepared

Launch = Callable[..., subprocess.CompletedProcess[str]]


def settings(root: Path, ready: dict[str, Any], **changes: Any) -> dict[str, Any]:
    model = ready["model_path"]
    copy = root / "sft-model"
    if not copy.exists():
        shutil.copytree(model, copy)
    return {
        "models": {"base": model, "sft": str(copy)},
        "tokenizer": model,
        "trust_remote_code": False,
        "chat_template": None,
        "template_options": {},
        "test_file": ready["val_files"],
        "reward": None,
        "rows": 6,
        "seed": 1,
        "samples": 1,
        "decoding": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 8},
        "harness": [],
        "device": "cpu",
        "gpus": 0,
        "published": None,
        "answers_file": str(root / attempt_dir.EVALUATION_ANSWERS),
        "logger": ["console"],
        "project_name": "p",
        "experiment_name": "e",
        "wandb_entity": None,
        **changes,
    }


def test_equal_models_get_equal_answers_and_another_seed_gets_others(
    tmp_path: Path, assets: Path, launch: Launch
) -> None:
    ready = prepared(tmp_path, assets, launch)

    def evaluated(name: str, **changes: Any) -> dict[str, Any]:
        file = attempt(tmp_path, name, settings(tmp_path, ready, **changes))
        done = launch("evaluate", file)
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads((file.parent / attempt_dir.RESULT).read_text())["evaluation"]
        return found

    made = evaluated("greedy")
    assert made["metric"] == "verl_reward" and made["rows"] == 6 and made["data"]["hash"]
    assert made["differences"]["sft-base"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    base, sft = (made["models"][name] for name in ("base", "sft"))
    assert 0 < base["tokens"] <= 48 and {**base, "path": ""} == {**sft, "path": ""}
    for sample in made["samples"]:
        assert sample["answers"]["base"] == sample["answers"]["sft"] and sample["prompt"]
    written = json.loads((tmp_path / attempt_dir.EVALUATION_ANSWERS).read_text())
    assert len(written["rows"]) == 6 and written["evaluation"] == made
    assert not (tmp_path / attempt_dir.EVALUATION_FINISHED).exists()

    hot: dict[str, Any] = {"decoding": {"temperature": 1.0, "top_p": 0.9, "max_tokens": 8}, "samples": 2}
    hot["models"] = {"base": ready["model_path"]}
    first, again, other = evaluated("a", **hot), evaluated("b", **hot), evaluated("c", **hot, seed=2)
    assert first["samples"] == again["samples"] != other["samples"]
