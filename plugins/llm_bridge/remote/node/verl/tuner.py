"""Find the fastest settings of SFT that fit, within minutes, on the nodes of its own job (recipe: ``sft.tune``).

The stages ``sft`` and ``tune`` call this. What was found is kept on the cluster for all runs with the same model, GPUs
and settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common import programs
from llm_bridge.remote.node.common.job_io import Settings, attempt, log_line, read_json, write_json
from llm_bridge.remote.node.ray import supervise
from llm_bridge.remote.node.verl import hydra_args, trainer_config, tuning
from llm_bridge.remote.node.verl.tuning import Measured

MODULE = "llm_bridge.remote.node.verl.hooks.tune"
# No measurement begins later than this after the start; the program is killed some time after that.
SECONDS = 240
GRACE_SECONDS = 40
# Between SIGTERM and SIGKILL.
END_SECONDS = 10
# Each setting that does not fit costs a start of all processes.
RESTARTS = 4
OWN_LINES = "[llm-bridge] tuning:"
# Settings that change neither memory nor speed, by their beginning.
IRRELEVANT = ("trainer.", "checkpoint.", "profiler.", "data.val_", "optim.lr", "optim.total_training_steps")
# Packages whose version changes what fits.
DISTRIBUTIONS = ("torch", "transformers", "verl", "flash-attn")


def tuned(
    settings: Settings, config: Any, nodes: int, gpus_per_node: int, torchrun: Callable[[str, int], list[str]]
) -> dict[str, Any]:
    """Return what the tuner found, from an earlier job's file or from measurements; every node calls this.

    Args:
        settings: The stage's settings.json; ``tuning_dir`` is the folder of what earlier jobs found.
        config: verl's configuration.
        nodes: Number of nodes.
        gpus_per_node: Number of GPUs on each node.
        torchrun: Returns the command that starts a module on this node, from its name and the number of restarts.

    Returns:
        See :func:`tuning.advice`; empty if nothing was measured. The same on every node, unless one was cut off.
    """
    lookup = trainer_config.lookup(config)
    if reason := tuning.not_tunable(lookup):
        log_line(f"tuning: skipped: {reason}")
        return {}
    subject = tuning.training(lookup, nodes * gpus_per_node)
    file = _kept_file(settings, config, nodes, gpus_per_node)
    if file and (known := _remembered(file)):
        log_line(f"tuning: measured by an earlier job ({file}; remove it to measure again)")
        return tuning.advice(subject, *_parsed(known))
    content = _run(settings, nodes, torchrun)
    if not content or not content.get("measured"):
        log_line(f"tuning: nothing was measured; see {attempt() / attempt_dir.TUNING}")
        return {}
    if file and content["complete"] and os.environ.get("SLURM_NODEID", "0") == "0":
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, content)
    return tuning.advice(subject, *_parsed(content))


def _parsed(content: Mapping[str, Any]) -> tuple[list[Measured], float | None, bool]:
    measured = [Measured.from_json(entry) for entry in content["measured"]]
    return measured, content["memory_gib"], content["complete"]


def _run(settings: Settings, nodes: int, torchrun: Callable[[str, int], list[str]]) -> dict[str, Any] | None:
    """Run the tuner on this node; returns what it measured, None where that is not known to be so on all nodes."""
    node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    folder = attempt() / attempt_dir.TUNING
    folder.mkdir(exist_ok=True)
    state = folder / attempt_dir.TUNING_STATE
    own = Path(
        tempfile.mkdtemp(prefix="llm-bridge-tuning-")
    )  # on this node: answers of others may appear late
    answer = own / "answer.json"
    if os.environ.get("SLURM_NODEID", "0") == "0":
        state.unlink(missing_ok=True)
        log_line(f"tuning: settings are measured for up to {SECONDS} s; output: {folder}")
    options = {
        "folder": str(folder),
        "answer": str(answer),
        "deadline": time.time() + SECONDS,
    }
    variables = trainer_config.training_environment(settings, os.environ, attempt())
    variables[tuning.OPTIONS_VARIABLE] = json.dumps(options)
    changes = {"data.val_files": None, "data.num_workers": 0, "trainer.logger": ["console"]}
    command = [
        *torchrun(MODULE, RESTARTS),
        *hydra_args.overrides(changes),
        f"hydra.run.dir={attempt_dir.TUNING}/{attempt_dir.HYDRA}",
    ]
    try:
        with (folder / f"{node}.log").open("ab") as log:
            _logged(command, variables, log, SECONDS + GRACE_SECONDS)
        content: dict[str, Any] | None = read_json(answer)
    finally:
        shutil.rmtree(own, ignore_errors=True)
    if content is None:
        log_line("tuning: the tuner was cut off or failed")
        # What one node measured before that is complete; other nodes cannot be asked.
        content = read_json(state) if nodes == 1 else None
    return content


def _logged(command: list[str], variables: Mapping[str, str], log: Any, seconds: float) -> None:
    """Run a command with its output in a file and our own lines in the job's output, too; end it at its limit.

    The output is not the job's: a setting that does not fit must not be taken for the cause of a later failure. No
    process of the command is left, also not those of sessions of their own, as torchrun's are: the training needs their
    memory. This process must have no other children.
    """
    supervise.adopt_orphans()
    process = subprocess.Popen(
        command, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    timer = threading.Timer(seconds, supervise.end_children, [END_SECONDS])
    timer.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            log.write(line)
            log.flush()
            text = line.decode(errors="replace").rstrip()
            if (begin := text.find(OWN_LINES)) >= 0:
                print(text[begin:], flush=True)
        process.wait()
    finally:
        timer.cancel()
        timer.join()
        supervise.end_children(END_SECONDS)


def _kept_file(settings: Settings, config: Any, nodes: int, gpus_per_node: int) -> Path | None:
    """Return the file with what was measured for the same model, GPUs and settings; None without a folder for it."""
    from omegaconf import OmegaConf

    if not settings.get("tuning_dir"):
        return None
    relevant = {
        f"{section}.{key}": value
        for section, values in OmegaConf.to_container(config, resolve=True).items()
        for key, value in values.items()
        if not f"{section}.{key}".startswith(IRRELEVANT)
    }
    versions = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    subject = [relevant, nodes, gpus_per_node, _gpu_name(), versions]
    digest = hashlib.sha256(json.dumps(subject, sort_keys=True, default=str).encode()).hexdigest()
    return Path(settings["tuning_dir"]) / f"sft-{digest[:20]}.json"


def _gpu_name() -> str:
    """Return the kinds of this node's GPUs; empty without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        return "; ".join(sorted(set(programs.run(command, 30).stdout.splitlines())))
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _remembered(file: Path) -> dict[str, Any] | None:
    """Return what an earlier job measured; None for one that was written after this job was submitted.

    Such a file might be seen on some of the nodes only.
    """
    try:
        if file.stat().st_mtime > (attempt() / attempt_dir.SETTINGS).stat().st_mtime:
            return None
    except OSError:
        return None
    found = read_json(file)
    return found if isinstance(found, dict) and found.get("measured") else None
