"""What is put into hydra's overrides must come out of hydra unchanged."""

from __future__ import annotations

import json
import random
import subprocess
from typing import Any

from llm_bridge.remote.node.verl.hydra_args import override

# Reads overrides as a program that uses hydra does, and prints what the program would see.
READER = """
import json, sys
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
with initialize_config_dir(sys.argv[1], version_base=None):
    config = compose("empty", overrides=json.load(sys.stdin))
print(json.dumps(OmegaConf.to_container(config, resolve=True)))
"""
AWKWARD = [
    "it's",
    'say "hi"',
    "$(touch /tmp/owned) `id` $HOME",
    "${oc.env:HOME}",
    "\\${x} \\\\${x}",
    "a,b",
    "{a: 1}",
    "[1, 2]",
    "key=value",
    "two\nlines\tand a tab",
    "日本語 – ü",
    "  spaces around  ",
    "trailing\\",
    "'",
    "\\'",
    "",
    "null",
    "true",
    "12",
    "1e-6",
    "~/home",
    "+plus",
    "a:b@c/d?e*f|g",
    "choice(1,2)",
]


def read_back(python: str, tmp_path: Any, values: dict[str, Any]) -> dict[str, Any]:
    (tmp_path / "empty.yaml").write_text("{}")
    arguments = [override(f"+{key}", value) for key, value in values.items()]
    done = subprocess.run(
        [python, "-c", READER, str(tmp_path)], input=json.dumps(arguments), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_awkward_strings_arrive_unchanged(cluster_python: str, tmp_path: Any) -> None:
    values = {f"k{i}": text for i, text in enumerate(AWKWARD)}
    assert read_back(cluster_python, tmp_path, values) == values


def test_strings_made_of_special_characters_arrive_unchanged(cluster_python: str, tmp_path: Any) -> None:
    chance = random.Random(0)
    pieces = [*"'\"\\${}[],:=() \n\ta1?~+é", "${", "日"]
    values = {f"k{i}": "".join(chance.choices(pieces, k=chance.randint(0, 9))) for i in range(300)}
    assert read_back(cluster_python, tmp_path, values) == values


def test_every_kind_of_value_arrives_with_its_type(cluster_python: str, tmp_path: Any) -> None:
    values = {
        "none": None,
        "yes": True,
        "no": False,
        "whole": -3,
        "small": 1e-06,
        "exact": 0.1,
        "list": ["console", "it's", 1, None, ["x"]],
        "dict": {"a": "b, c", "d_1": {"e": False}},
        "empty_list": [],
        "empty_dict": {},
    }
    assert read_back(cluster_python, tmp_path, values) == values
