"""Find what a run starts from: the finished stages of another run, a model, or checkpoints of RL.

Takes a StartRequest and returns a StartAnswer (``remote/messages.py``). A result counts only with its STAGE_RESULT, its
outputs, and inputs that have not been made again since.
"""

import hashlib
import json
import os
import re
from typing import Any, Dict, List, Optional

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Provenance, StageResult
from llm_bridge.remote.login.stage_result import result_ids, same_inputs
from llm_bridge.remote.messages import StartAnswer, StartRequest, decode, encode

# As in ``remote/node/verl/checkpoints.py``.
TRACKER = "latest_checkpointed_iteration.txt"
STEP = "global_step_%s"
# In the order in which transformers looks for them.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Runs that are named where one does not exist.
SHOWN_RUNS = 5


def result_of(directory: str) -> Optional[StageResult]:
    """Return the result of a stage; None where it is missing, or its inputs have been made again since."""
    found = attempt_dir.read_shape(StageResult, directory, attempt_dir.STAGE_RESULT)  # type: Optional[StageResult]
    if not found:
        return None
    # Prepared data that were removed since change nothing.
    existing = {path: name for path, name in found.inputs.items() if os.path.isdir(path)}
    return found if same_inputs(existing, result_ids(list(existing))) else None


def is_unfinished(directory: str) -> bool:
    """Return True if a stage has begun and has no valid result."""
    began = attempt_dir.read_shape(Provenance, directory, attempt_dir.PROVENANCE)
    return began is not None and result_of(directory) is None


def model_problem(path: str) -> Optional[str]:
    """Return what a model folder lacks; None if its configuration and weights are there."""
    if not os.path.isdir(path):
        return "no such directory"
    if not isinstance(attempt_dir.read_json(os.path.join(path, "config.json")), dict):
        adapter = os.path.exists(os.path.join(path, "adapter_config.json"))
        return "it is a LoRA adapter, which has to be merged first" if adapter else "config.json is missing"
    for name in WEIGHTS:
        if size(os.path.join(path, name)):
            return None
        index = attempt_dir.read_json(os.path.join(path, name + ".index.json"))
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if isinstance(shards, dict) and shards:
            lacking = sorted({str(s) for s in shards.values() if not size(os.path.join(path, str(s)))})
            return "%s is missing or empty" % lacking[0] if lacking else None
    return "the weights are missing: no %s, and no index of them" % ", no ".join(WEIGHTS)


def checkpoint_problem(path: str) -> Optional[str]:
    """Return what a directory of checkpoints lacks; None if the newest one has all shards of the actor."""
    if not os.path.isdir(path):
        return "no such directory"
    step = (attempt_dir.read(os.path.join(path, TRACKER)) or "").strip()
    if not step.isdigit():
        return "%s is missing: give the directory that has it and %s" % (TRACKER, STEP % "N")
    part = os.path.join(path, STEP % step, "actor")
    config = attempt_dir.read_json(os.path.join(part, "fsdp_config.json"))
    if not isinstance(config, dict) or not isinstance(config.get("world_size"), int):
        return "%s is no checkpoint of verl's RL: fsdp_config.json is missing" % part
    for rank in range(config["world_size"]):
        name = "model_world_size_%d_rank_%d.pt" % (config["world_size"], rank)
        if not size(os.path.join(part, name)):
            return "the checkpoint of step %s is incomplete: %s is missing in %s" % (step, name, part)
    return None


def size(path: str) -> int:
    """Return the size of a file in bytes; 0 if it is missing."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def identity(path: str) -> str:
    """Return a hash of the names, sizes and times of the files of a model or of the newest checkpoint."""
    root = path
    step = (attempt_dir.read(os.path.join(path, TRACKER)) or "").strip()
    if step:
        root = os.path.join(path, STEP % step, "actor")
    found = []
    for name in sorted(os.listdir(root)):
        if re.search(r"\.(safetensors|bin|pt|json)\Z", name):
            stat = os.stat(os.path.join(root, name))
            found.append([name, stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps([step, found]).encode()).hexdigest()[:16]


def of_files(asked: StartRequest) -> StartAnswer:
    """Return the identity of a model or of checkpoints, or what they lack."""
    check = checkpoint_problem if asked.stage == "merge" else model_problem
    problem = check(asked.path)
    # A run of llm-bridge that is not finished may have a folder that looks like one: SFT's stage has the result of
    # its model in merge/.
    stage = os.path.dirname(asked.path)
    if not problem and any(is_unfinished(place) for place in (stage, os.path.join(stage, "merge"))):
        problem = "the stage that makes it, %s, has not finished" % stage
    if problem:
        return StartAnswer(["%s: %s cannot be used: %s" % (asked.setting, asked.path, problem)])
    return StartAnswer(id=identity(asked.path))


def runs_beside(run: str) -> List[str]:
    """Return the names of the newest runs of the same DAG."""
    above = os.path.dirname(run)
    try:
        runs = [os.path.join(above, name) for name in os.listdir(above) if not name.startswith(".")]
        runs = sorted(filter(os.path.isdir, runs), key=os.path.getmtime, reverse=True)
    except OSError:
        return []
    return [os.path.basename(path) for path in runs[:SHOWN_RUNS]]


def settings_of(directory: str, result: StageResult) -> Dict[str, Any]:
    """Return the settings of the attempt that completed a stage."""
    found = attempt_dir.read_json(os.path.join(directory, result.attempt, attempt_dir.SETTINGS))
    return found if isinstance(found, dict) else {}


def of_run(asked: StartRequest) -> StartAnswer:
    """Return the finished stages of a run, or which one is missing."""
    run = asked.path
    name = os.path.basename(run)
    if not os.path.isdir(run):
        others = runs_beside(run)
        listed = "the newest runs there: %s" % ", ".join(others) if others else "no run is there"
        problem = "%s: the cluster has no run %s in %s (%s)"
        return StartAnswer([problem % (asked.setting, name, os.path.dirname(run), listed)])
    sft, ppo, merge = (os.path.join(run, stage) for stage in ("sft", "ppo", "merge"))
    found = {}  # type: Dict[str, StageResult]
    lacks = {}  # type: Dict[str, str]
    stages = (
        ("sft", os.path.join(sft, "merge"), model_problem(os.path.join(sft, "model"))),
        ("ppo", ppo, checkpoint_problem(os.path.join(ppo, "checkpoints"))),
        ("merge", merge, model_problem(os.path.join(merge, "model"))),
    )
    for stage, place, lacking in stages:
        result = result_of(place)
        if result and not lacking:
            found[stage] = result
        elif result:
            lacks[stage] = "%s has a result, but its output is not complete: %s" % (place, lacking)
        else:
            text = "%s has no %s, or it was made from inputs that have changed"
            lacks[stage] = text % (place, attempt_dir.STAGE_RESULT)
    with_rl = os.path.isdir(ppo) or os.path.isdir(merge)
    final = "merge" if with_rl else "sft"
    needed = {"ppo": "sft", "merge": "ppo"}.get(asked.stage, final)
    if needed not in found:
        text = "%s: run %s has no finished stage %r, from which %r starts: %s. Finished in that run: %s"
        finished = ", ".join(sorted(found)) or "none"
        return StartAnswer([text % (asked.setting, name, needed, asked.stage, lacks[needed], finished)])
    sft_result, ppo_result = result_of(sft), result_of(ppo)
    base = settings_of(sft, sft_result).get("model_path") if sft_result else None
    start = settings_of(ppo, ppo_result).get("actor_path") if ppo_result else None
    return StartAnswer(
        results={stage: result.id for stage, result in found.items()},
        base_model=base if isinstance(base, str) else "",
        ppo_from=start if isinstance(start, str) and asked.stage == "merge" else "",
    )


def main(request: Dict[str, Any]) -> Any:
    """Look the run, the model or the checkpoints up."""
    asked = decode(StartRequest, request)
    return encode(of_run(asked) if asked.is_run else of_files(asked))
