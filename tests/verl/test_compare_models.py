"""Comparison of a merged model with the model that training started from, with real torch."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from testing.paths import PLUGINS

COMPARE = """
import json, sys, torch
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[1])
from llm_bridge.remote.node.verl.compare_models import same_as_base
from pathlib import Path

torch.manual_seed(0)
weights = {name: torch.randn(8, 8) * 0.02 for name in ("embed.weight", "a.weight", "b.weight")}
rounded = {name: tensor.bfloat16() for name, tensor in weights.items()}
step = {**rounded, "b.weight": (weights["b.weight"] + 1e-5 * torch.randn(8, 8)).bfloat16()}
half = {name: tensor.half() for name, tensor in weights.items()}
count = 0

def folder(tensors, kind="safetensors"):
    global count
    count += 1
    path = Path(f"m{count}")
    path.mkdir()
    if kind == "safetensors":
        save_file(tensors, path / "model.safetensors")
    elif kind == "shards":
        index = {name: f"model-{number}.safetensors" for number, name in enumerate(tensors)}
        for name, file in index.items():
            save_file({name: tensors[name]}, path / file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        torch.save(tensors, path / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "bin")
    return path

def of(base, trained, *kinds):
    return same_as_base(folder(base, *kinds), folder(trained))

names = {"embed.weight": "model.embed", "a.weight": "model.a", "b.weight": "model.b"}
renamed = lambda tensors: {names[name]: tensor for name, tensor in tensors.items()}
print(json.dumps({
    "rounded": of(weights, rounded),
    "rounded from float16": of(half, {name: tensor.bfloat16() for name, tensor in half.items()}),
    "a small step": of(weights, step),
    **{f"rounded, base in {kind}": of(weights, rounded, kind) for kind in ("shards", "bin", "old bin")},
    **{f"a small step, base in {kind}": of(weights, step, kind) for kind in ("shards", "bin", "old bin")},
    "renamed": of(weights, renamed(rounded)),
    "a small step, renamed": of(weights, renamed(step)),
    "tied, saved twice": of(weights, {**rounded, "lm_head.weight": rounded["embed.weight"].clone()}),
    "tied, saved once": of({**weights, "lm_head.weight": weights["embed.weight"].clone()}, rounded),
    "a buffer more": of(weights, {**rounded, "inv_freq": torch.ones(3), "steps": torch.tensor([7])}),
    "nothing in common": of(weights, {"c": torch.ones(3)}),
}))
"""


def test_a_change_by_training_is_detected_after_rounding_in_any_format_and_under_any_names(
    cluster_python: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [cluster_python, "-c", COMPARE, str(PLUGINS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    equal = {case: tensors and len(tensors) for case, tensors in json.loads(done.stdout).items()}
    assert {case for case, tensors in equal.items() if tensors is None} == {
        *("a small step", "a small step, base in shards", "a small step, base in bin"),
        *("a small step, base in old bin", "a small step, renamed"),
    }
    assert equal.pop("nothing in common") == []
    assert equal.pop("tied, saved twice") == 4
    assert {tensors for tensors in equal.values() if tensors is not None} == {3}
