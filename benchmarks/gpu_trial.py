"""Train on the GPUs of this machine with the programs of a job, without Slurm: ``make gpu-trial``.

Needs the driver and an environment as of requirements-cluster-vllm.txt; without them it prints which cases did not run
and why, and ends with exit code 1. Settings are the recipes' own, with batches for one machine. Models are made here: a
small Llama, which SFT teaches sums first so that a reward can rise, and one of Llama-3.2-1B's shape with random weights
for time and memory. ``direct:CASE`` starts verl's trainer without llm-bridge, with the arguments that the job would
use; ``CASE#2`` repeats a case; ``CASE|OTHER`` runs the second where the first fails. A case has all GPUs, one after the
other; ``--lane "CASE CASE"``, once for each GPU, gives a row of cases one GPU, beside the other lanes.

build/gpu-trial/report.json has the numbers, build/gpu-trial/CASE/output.log each case's output, times.log its lines
with the seconds since the start, memory.log the memory in use.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))

from llm_bridge.remote import attempt_dir, node_archive

PPO, GRPO = "gsm8k_llama32_1b", "gsm8k_grpo_llama32_1b"
DISTRIBUTIONS = ("torch", "transformers", "verl", "vllm", "flash-attn", "ray")
ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
MEMORY = f"{ROLLOUT}.gpu_memory_utilization"
CHECKPOINTING = "model.enable_gradient_checkpointing"
# The small model's sequences are short: larger batches than the recipe's.
SMALL: dict[str, Any] = {
    "data.train_batch_size": 128,
    "data.max_prompt_length": 128,
    "data.max_response_length": 64,
    f"{ACTOR}.ppo_mini_batch_size": 32,
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": 64,
    f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": 128,
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 128,
    f"{ACTOR}.optim.lr": 4.0e-5,
}
CRITIC = {f"{ACTOR}.ppo_micro_batch_size_per_gpu": 32, "critic.ppo_micro_batch_size_per_gpu": 32}
# SFT of the large model on rows of 512 tokens: a batch of 64 rows for each GPU.
ROWS = 64
SFT_LARGE: dict[str, Any] = {"data.micro_batch_size_per_gpu": 32, "data.max_length": 512}
# Four times the share that one of the recipe's sixteen GPUs has of a batch.
LARGE: dict[str, Any] = {"data.train_batch_size": 64, f"{ACTOR}.ppo_mini_batch_size": 16}
GROUPS: dict[str, Any] = {"data.train_batch_size": 32, f"{ACTOR}.ppo_mini_batch_size": 8}
LORA: dict[str, Any] = {
    "actor_rollout_ref.model.lora_rank": 16,
    "actor_rollout_ref.model.lora_alpha": 32,
    "actor_rollout_ref.model.target_modules": "all-linear",
    f"{ROLLOUT}.load_format": "safetensors",
    f"{ACTOR}.optim.lr": 1.0e-5,
}


class Case(NamedTuple):
    """One training.

    Attributes:
        recipe: Its recipe.
        model: ``small`` or ``1b``.
        steps: Steps to train.
        changes: Settings of verl instead of the recipe's.
    """

    recipe: str
    model: str
    steps: int
    changes: dict[str, Any]


class SftCase(NamedTuple):
    """One SFT of the large model.

    Attributes:
        steps: Steps to train.
        changes: Settings of verl instead of the recipe's.
        tune: ``sft.tune``.
        rows: Rows of a batch for each GPU.
    """

    steps: int
    changes: dict[str, Any]
    tune: str = "off"
    rows: int = ROWS


# gpu_memory_utilization is the recipe's, for the whole of its GPUs, unless a case has another one.
CASES: dict[str, Case | SftCase] = {
    "grpo-small": Case(GRPO, "small", 25, SMALL),
    "ppo-small": Case(PPO, "small", 15, SMALL | CRITIC),
    "ppo-small-half": Case(PPO, "small", 15, SMALL | CRITIC | {MEMORY: 0.5}),
    "ppo-1b": Case(PPO, "1b", 8, LARGE),
    "ppo-1b-half": Case(PPO, "1b", 8, LARGE | {MEMORY: 0.5}),
    "grpo-1b": Case(GRPO, "1b", 10, GROUPS),
    "grpo-1b-half": Case(GRPO, "1b", 10, GROUPS | {MEMORY: 0.5}),
    "lora-1b": Case(GRPO, "1b", 5, GROUPS | LORA | {MEMORY: 0.5}),
    "sft-1b": SftCase(40, SFT_LARGE),
    # A micro batch that no GPU of 80 GB holds: what the job says, and what the tuner makes of it.
    "sft-1b-oom": SftCase(
        3, SFT_LARGE | {"data.micro_batch_size_per_gpu": 128, CHECKPOINTING: False}, rows=128
    ),
    "sft-1b-apply": SftCase(
        3, SFT_LARGE | {"data.micro_batch_size_per_gpu": 128, CHECKPOINTING: False}, "apply", rows=128
    ),
}
# Cases that are to fail.
FAILING = ("sft-1b-oom",)
# SFT's tuner on rows of the small data, from a micro batch of 8.
TUNE = "tune-1b"
MODELS = "models"
METRICS = {
    "score": "critic/score/mean",
    "step_s": "timing_s/step",
    "gen_s": "timing_s/gen",
    "old_log_prob_s": "timing_s/old_log_prob",
    "ref_s": "timing_s/ref",
    "values_s": "timing_s/values",
    "update_actor_s": "timing_s/update_actor",
    "update_critic_s": "timing_s/update_critic",
    "update_weights_s": "timing_s/update_weights",
    "response_tokens": "response_length/mean",
    "tokens_per_s": "perf/throughput",
    "pearson": "training/rollout_actor_probs_pearson_corr",
    "probs_diff": "training/rollout_probs_diff_mean",
    "allocated_gib": "actor/perf/max_memory_allocated_gb",
    "reserved_gib": "actor/perf/max_memory_reserved_gb",
}
# Lines of a training's output that say how far its start is: the first one with the text counts.
MARKS = {
    "program": "steps an epoch",
    "ray": "Connected to Ray cluster",
    "data": "dataloader initialized",
    "workers": "create worker group",
    "critic": "critic model engine initialized",
    "actor": "actor and ref model engine initialized",
    "rollout": "checkpoint engine manager initialized",
    "fit": "ready to fit",
    "first_step": "step:1 - ",
}


def missing() -> Iterator[str]:
    """Yield what this machine lacks for a trial."""
    try:
        import torch

        if not torch.cuda.is_available():
            yield "torch sees no GPU (nvidia-smi shows those of the driver)"
    except ImportError:
        pass
    for name in DISTRIBUTIONS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} is not installed in {sys.prefix} (requirements-cluster-vllm.txt)"


class Lane(NamedTuple):
    """GPUs that a row of cases has for itself.

    Attributes:
        gpus: Their numbers, as in CUDA_VISIBLE_DEVICES.
        number: Makes ports and job numbers different from those of other lanes.
    """

    gpus: tuple[str, ...]
    number: int

    def environment(self) -> dict[str, str]:
        """Return the variables of a job's processes."""
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(self.gpus),
            "SLURM_JOB_ID": str(4711 + self.number),
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_GPUS_ON_NODE": str(len(self.gpus)),
            "RENDEZVOUS_HOST": "localhost",
            "RAY_ADDRESS": f"127.0.0.1:{self.ray_port}",
        }

    @property
    def ray_port(self) -> int:
        """Port of the lane's Ray cluster; those of its other services follow."""
        return 6400 + 100 * self.number

    def ray_command(self) -> list[str]:
        """Return the command that runs a Ray cluster of this machine until it is ended."""
        port, workers = self.ray_port, 20000 + 2000 * self.number
        ports = {
            "port": port,
            "dashboard-port": port + 1,
            "ray-client-server-port": port + 2,
            "dashboard-agent-listen-port": port + 3,
            "dashboard-agent-grpc-port": port + 4,
            "metrics-export-port": port + 5,
            "runtime-env-agent-port": port + 6,
            "node-manager-port": port + 7,
            "object-manager-port": port + 8,
            "min-worker-port": workers,
            "max-worker-port": workers + 1999,
        }
        return [
            *(sys.executable, "-c", "from ray.scripts.scripts import main; main()"),
            *("start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"),
            *(f"--num-gpus={len(self.gpus)}", "--object-store-memory=8000000000"),
            *(f"--{name}={value}" for name, value in ports.items()),
            f"--temp-dir=/tmp/gpu-trial-{self.number}",
        ]


class Trial:
    """Cases, and what they ended with.

    Args:
        folder: Receives models, data, and a directory for each case.
        minutes: Longest time of a case.
        lane: GPUs of the cases.
    """

    def __init__(self, folder: Path, minutes: float, lane: Lane) -> None:
        self.folder, self.minutes, self.lane = folder, minutes, lane
        folder.mkdir(parents=True, exist_ok=True)
        self.archive = folder / attempt_dir.NODE_ARCHIVE
        if not self.archive.exists():
            self.archive.write_bytes(node_archive.build())
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        gpus = ",".join(self.lane.gpus)
        print(f"[{time.monotonic() - self.started:6.1f} s, GPU {gpus}] {text}", flush=True)

    def run(self, name: str, command: list[str]) -> tuple[int, float, int]:
        """Run a program of a case.

        Returns:
            Exit code, seconds, and the most memory in use meanwhile of any of its GPUs in MiB, of all processes.
        """
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        self.say(f"{name} starts")
        most, done, began = [0], threading.Event(), time.monotonic()
        watcher = threading.Thread(target=_watch_memory, args=(folder / "memory.log", self.lane, most, done))
        watcher.start()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **self.lane.environment()},
        )
        assert process.stdout is not None
        reader = threading.Thread(target=_copy, args=(process.stdout, folder, began))
        reader.start()
        try:
            code = process.wait(60 * self.minutes)
        except subprocess.TimeoutExpired:
            process.terminate()
            code = 124
        seconds = round(time.monotonic() - began, 1)
        done.set()
        watcher.join()
        # A process that has outlived the program may hold the other end.
        reader.join(5)
        self.say(f"{name}: exit code {code} after {seconds} s, at most {most[0]} MiB of a GPU")
        if code:
            lines = (folder / "output.log").read_text(errors="replace").splitlines()
            print("\n".join(line[:300] for line in lines[-25:])[-4000:], flush=True)
        return code, seconds, most[0]

    def program(self, name: str, *arguments: str) -> list[str]:
        """Return the command of a program of a job."""
        return [sys.executable, str(self.archive), name, *arguments]

    def make_models(self) -> None:
        """Make data and both models; SFT teaches the small one."""
        if not (self.folder / "1b" / "config.json").exists():
            self.run(
                "assets", [sys.executable, str(Path(__file__).resolve()), "--make-assets", str(self.folder)]
            )
        if (self.folder / "sft" / "model" / "config.json").exists():
            return
        settings = self.folder / "sft" / attempt_dir.SETTINGS
        settings.parent.mkdir(exist_ok=True)
        verl = {
            "data.train_batch_size": 128,
            "data.micro_batch_size_per_gpu": 128,
            "data.use_dynamic_bsz": False,
            "data.max_length": 256,
            "engine.strategy": "fsdp2",
            "optim.lr": 5.0e-4,
            "optim.lr_warmup_steps": 30,
            "trainer.total_epochs": 100,
            "trainer.total_training_steps": 60,
            "trainer.save_freq": 60,
            "trainer.test_freq": 60,
        }
        common = {
            "model_path": str(self.folder / "small"),
            "checkpoint_dir": str(settings.parent / "checkpoints"),
        }
        settings.write_text(json.dumps(self.common("sft") | common | {"verl": verl, "keep": 1}))
        self.run("sft", self.program("sft", str(settings)))
        merge = settings.with_name("merge.json")
        paths = {"trained_from": common["model_path"], "output_dir": str(self.folder / "sft" / "model")}
        merge.write_text(json.dumps({**common, **paths, "component": None}))
        self.run("sft", self.program("merge", str(merge)))

    def common(self, name: str) -> dict[str, Any]:
        """Return the settings that all trainings have."""
        return {
            "train_files": str(self.folder / "train.parquet"),
            "val_files": str(self.folder / "test.parquet"),
            "device": "cuda",
            "logger": ["console"],
            "project_name": "gpu-trial",
            "experiment_name": name,
            "wandb_entity": None,
        }

    def case(self, name: str) -> dict[str, Any]:
        """Run a case, by its name with all that it may have before and after it, and return its numbers."""
        plain = name.removeprefix("direct:").partition("#")[0]
        folder, direct = name.replace(":", "-"), name != name.removeprefix("direct:")
        if plain == TUNE:
            return self.tune(folder)
        case = CASES[plain]
        if isinstance(case, SftCase):
            return self.sft(folder, case, direct)
        with self.ray(folder):
            return self.train(folder, case, direct)

    @contextlib.contextmanager
    def ray(self, name: str) -> Iterator[None]:
        """Run a Ray cluster on the lane's GPUs."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        variables = {**os.environ, **self.lane.environment()}
        del variables["RAY_ADDRESS"]
        with (folder / "ray.log").open("wb") as log:
            cluster = subprocess.Popen(self.lane.ray_command(), stdout=log, stderr=log, env=variables)
        until = time.monotonic() + 120
        while b"Ray runtime started" not in (folder / "ray.log").read_bytes() and time.monotonic() < until:
            if cluster.poll() is not None:
                break
            time.sleep(0.2)
        try:
            yield
        finally:
            cluster.terminate()
            try:
                cluster.wait(60)
            except subprocess.TimeoutExpired:
                cluster.kill()

    def sft(self, name: str, case: SftCase, direct: bool) -> dict[str, Any]:
        """Fine-tune the large model on full rows, and return its numbers."""
        from llm_bridge.config.loader import load_recipe

        file = self.folder / name / attempt_dir.SETTINGS
        file.parent.mkdir(parents=True, exist_ok=True)
        gpus = len(self.lane.gpus)
        verl = {
            **load_recipe(PPO).sft.verl,
            "data.train_batch_size": case.rows * gpus,
            **case.changes,
            "trainer.total_epochs": 1000,
            "trainer.total_training_steps": case.steps,
            "trainer.save_freq": 1000,
            "trainer.test_freq": -1,
            "checkpoint.save_contents": ["model"],
        }
        settings = {
            **self.common(name),
            "train_files": str(self.folder / "full.parquet"),
            "model_path": str(self.folder / "1b"),
            "checkpoint_dir": str(file.parent / "checkpoints"),
            "keep": 1,
            "tune": case.tune,
            "verl": verl,
        }
        file.write_text(json.dumps(settings, indent=1))
        command = self.program("sft", str(file))
        if direct:
            from llm_bridge.remote.node.stages import sft

            start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
            command = [sys.executable, *start, "-m", "verl.trainer.sft_trainer"]
            command += sft.arguments(settings, 1, gpus)
        code, seconds, most = self.run(name, command)
        shutil.rmtree(settings["checkpoint_dir"], ignore_errors=True)
        result = attempt_dir.read_json(str(file.with_name(attempt_dir.RESULT))) or {}
        found = sft_numbers(_times(file.parent)) | {"tuning": result.get("tuning")}
        return {"exit_code": code, "wall_s": seconds, "gpu_mib": most, **found}

    def train(self, name: str, case: Case, direct: bool) -> dict[str, Any]:
        """Train one case on the lane's Ray cluster, and return its numbers."""
        from llm_bridge.config.loader import load_recipe

        recipe = load_recipe(case.recipe).ppo
        model = str(self.folder / ("sft/model" if case.model == "small" else "1b"))
        attempt = self.folder / name
        attempt.mkdir(parents=True, exist_ok=True)
        verl = {
            **recipe.verl,
            **case.changes,
            "trainer.total_epochs": 1000,
            "trainer.total_training_steps": case.steps,
            "trainer.save_freq": case.steps,
            "trainer.test_freq": -1,
            # The optimizer's state is most of a checkpoint, and no attempt resumes here.
            f"{ACTOR}.checkpoint.save_contents": ["model"],
            **({"critic.checkpoint.save_contents": ["model"]} if recipe.algorithm == "ppo" else {}),
        }
        settings = {
            **self.common(name),
            "actor_path": model,
            **({"critic_path": model} if recipe.algorithm == "ppo" else {}),
            "checkpoint_dir": str(attempt / "checkpoints"),
            "nodes": 1,
            "gpus_per_node": len(self.lane.gpus),
            "keep": 1,
            "verl": verl,
        }
        file = attempt / attempt_dir.SETTINGS
        file.write_text(json.dumps(settings, indent=1))
        command = self.program("ppo", str(file))
        if direct:
            from llm_bridge.remote.node.stages import ppo

            command = [sys.executable, "-m", "verl.trainer.main_ppo", *ppo.arguments(settings)]
        code, seconds, most = self.run(name, command)
        shutil.rmtree(settings["checkpoint_dir"], ignore_errors=True)
        times = _times(attempt)
        found = {"start_s": start_times(times), **numbers("\n".join(line for _, line in times), verl)}
        return {"exit_code": code, "wall_s": seconds, "gpu_mib": most, **found}

    def tune(self, name: str) -> dict[str, Any]:
        """Run SFT's tuner on the large model and the recipe's settings, and return its report."""
        from llm_bridge.config.loader import load_recipe

        file = self.folder / name / attempt_dir.SETTINGS
        file.parent.mkdir(parents=True, exist_ok=True)
        changes = {
            "data.train_batch_size": ROWS * len(self.lane.gpus),
            "data.micro_batch_size_per_gpu": 8,
        }
        settings = {
            **self.common(name),
            "train_files": str(self.folder / "full.parquet"),
            "model_path": str(self.folder / "1b"),
            "checkpoint_dir": str(file.parent / "checkpoints"),
            "verl": {**load_recipe(PPO).sft.verl, **changes, "data.max_length": 512},
        }
        file.write_text(json.dumps(settings, indent=1))
        code, seconds, most = self.run(name, self.program("tune", str(file)))
        report = attempt_dir.read_json(str(file.with_name(attempt_dir.RESULT))) or {}
        return {"exit_code": code, "wall_s": seconds, "gpu_mib": most, **report}


def numbers(text: str, verl: dict[str, Any]) -> dict[str, Any]:
    """Return a training's numbers: medians over the steps after the second that do not save, and each step's score.

    Args:
        text: The training's output.
        verl: verl's settings.
    """
    steps: dict[int, dict[str, float]] = {}
    for number, line in re.findall(r"step:(\d+) - (.*)", text):
        pairs = re.findall(r"([\w/@.-]+):(?:np\.\w+\()?(-?[\d.]+(?:e[-+]?\d+)?)", line)
        steps.setdefault(int(number), {}).update({key: float(value) for key, value in pairs})
    found = [step for _, step in sorted(steps.items()) if METRICS["step_s"] in step]
    if not found:
        return {"steps": 0}
    steady = [step for step in found[2:] if "timing_s/save_checkpoint" not in step] or found
    medians = {
        name: round(statistics.median(step[key] for step in steady if key in step), 5)
        for name, key in METRICS.items()
        if any(key in step for step in steady)
    }
    answers = verl["data.train_batch_size"] * verl.get(f"{ROLLOUT}.n", 1)
    medians["rollout_tokens_per_s"] = round(medians["response_tokens"] * answers / medians["gen_s"])
    return {
        "steps": len(found),
        "all_step_s": [round(step[METRICS["step_s"]], 3) for step in found],
        "scores": [round(step[METRICS["score"]], 4) for step in found],
        **medians,
    }


def sft_numbers(times: list[tuple[float, str]]) -> dict[str, Any]:
    """Return an SFT's numbers: the median time of the steps after the fifth, and what it started with.

    Args:
        times: Lines of the output, each with the seconds since the start.
    """
    steps = [(seconds, line) for seconds, line in times if re.search(r"step:\d+ - .*train/loss", line)]
    if len(steps) < 2:
        return {"steps": len(steps)}
    took = [round(after[0] - before[0], 4) for before, after in itertools.pairwise(steps)]
    median = statistics.median(took[4:] or took)
    last = {key: float(value) for key, value in re.findall(r"train/(\w+):([\d.e-]+)", steps[-1][1])}
    return {
        "steps": len(steps),
        "step_s": round(median, 4),
        "tokens_per_s": round(last["global_tokens"] / median),
        "first_step_after_s": round(steps[0][0], 1),
        "last_loss": last["loss"],
        "all_step_s": took,
    }


def start_times(times: list[tuple[float, str]]) -> dict[str, float]:
    """Return the seconds after which a training's start had come so far.

    Args:
        times: Lines of the output, each with the seconds since the start.
    """
    found: dict[str, float] = {}
    for seconds, line in times:
        for name, text in MARKS.items():
            if text in line:
                found.setdefault(name, round(seconds, 1))
    return found


def ratios(report: dict[str, Any]) -> dict[str, Any]:
    """Return, for each case that verl directly ran as well, the direct median step divided by the project's.

    Runs on different numbers of GPUs are different cases.

    Args:
        report: Name of a case -> its numbers.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for name, entry in report.items():
        if entry.get("step_s") and not entry["exit_code"]:
            case = f"{name.removeprefix('direct:').partition('#')[0]} on GPUs: {1 + entry['gpus'].count(',')}"
            kind = "direct" if name.startswith("direct:") else "project"
            found.setdefault(case, {}).setdefault(kind, []).append(entry["step_s"])
    return {
        case: {
            **kinds,
            "ratio": round(statistics.mean(kinds["direct"]) / statistics.mean(kinds["project"]), 4),
        }
        for case, kinds in found.items()
        if len(kinds) == 2
    }


def _gpus() -> list[str]:
    """Return the numbers of the GPUs that this process may use."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _copy(source: IO[bytes], folder: Path, began: float) -> None:
    """Write a program's output to output.log, and to times.log with the seconds before each line."""
    with (folder / "output.log").open("ab") as output, (folder / "times.log").open("wb") as times:
        for line in source:
            output.write(line)
            output.flush()
            times.write(b"%.2f %s" % (time.monotonic() - began, line))
            times.flush()


def _times(folder: Path) -> list[tuple[float, str]]:
    # Bytes, because a progress bar's carriage returns are no ends of lines.
    lines = (folder / "times.log").read_bytes().decode(errors="replace").split("\n")
    pairs = (line.partition(" ") for line in lines if re.match(r"\d+\.\d\d ", line))
    return [(float(seconds), line) for seconds, _, line in pairs]


def _watch_memory(log: Path, lane: Lane, most: list[int], done: threading.Event) -> None:
    gpus = ",".join(lane.gpus)
    command = ["nvidia-smi", f"--id={gpus}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    began = time.monotonic()
    with log.open("w") as file:
        while not done.wait(0.5):
            used = [int(n) for n in subprocess.run(command, capture_output=True, text=True).stdout.split()]
            most[0] = max([most[0], *used])
            file.write(f"{time.monotonic() - began:.1f} {' '.join(map(str, used))}\n")
            file.flush()


def make_assets(folder: Path) -> None:
    """Make data of sums up to 38, a small Llama, and one of Llama-3.2-1B's shape, in some seconds."""
    import random

    import pandas
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from testing import make_assets as demo

    chance = random.Random(0)
    torch.manual_seed(0)
    rows = [_row(demo, chance) for _ in range(4200)]
    pandas.DataFrame(rows[:4000]).to_parquet(folder / "train.parquet")
    pandas.DataFrame(rows[4000:]).to_parquet(folder / "test.parquet")
    texts = [message["content"] for row in rows for message in row["messages"]]
    demo.make_model(folder / "small", texts)
    small = AutoTokenizer.from_pretrained(folder / "small")
    _full_rows(small, chance).to_parquet(folder / "full.parquet")
    shape = {"head_dim": 64, "tie_word_embeddings": True, "bos_token_id": small.bos_token_id}
    shape |= {"eos_token_id": small.eos_token_id, "pad_token_id": small.pad_token_id}
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        **shape,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "small")
    # Tokens that no text has fill the vocabulary: a model with random weights generates any of them.
    content = json.loads((folder / "small" / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    taken = {*vocabulary.values(), *(token["id"] for token in content["added_tokens"])}
    vocabulary |= {f"filler{number}": number for number in range(128256) if number not in taken}
    large = folder / "1b"
    small.save_pretrained(large)
    Tokenizer.from_str(json.dumps(content)).save(str(large / "tokenizer.json"))
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        **shape,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(large)


def _full_rows(tokenizer: Any, chance: Any, length: int = 508) -> Any:
    """Return a table of conversations of this many tokens: each digit is one."""
    import pandas

    def messages(digits: int) -> list[dict[str, str]]:
        answer = "".join(chance.choices("0123456789", k=digits))
        return [{"role": "user", "content": "Which digits?"}, {"role": "assistant", "content": answer}]

    others = len(tokenizer.apply_chat_template(messages(1), return_dict=False)) - 1
    return pandas.DataFrame([{"messages": messages(length - others)} for _ in range(4096)])


def _row(demo: Any, chance: Any) -> dict[str, Any]:
    """Return a row in verl's shapes for SFT and for PPO."""
    question, answer = demo.sum_in_words(chance, 19).values()
    return {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer.rpartition("#### ")[2]},
        "extra_info": {"question": question, "answer": answer},
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


def main() -> int:
    """Run the cases that are named, and print a report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-trial"))
    parser.add_argument("--minutes", type=float, default=15, help="longest time of a case (15)")
    parser.add_argument("--make-assets", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--lane", action="append", default=[], help="cases for one GPU; once for each GPU")
    parser.add_argument(
        "cases",
        nargs="*",
        help=f"{MODELS} (only make the models), {TUNE}, {', '.join(CASES)}; all but the first two also as direct:NAME; "
        "default: all",
    )
    given = parser.parse_args()
    if given.make_assets:
        make_assets(given.make_assets)
        return 0
    lanes = [lane.split() for lane in given.lane]
    cases = given.cases or ([] if lanes else [TUNE, *CASES])
    names = [*itertools.chain(*lanes), *cases]
    known = {MODELS, TUNE, *CASES, *(f"direct:{name}" for name in CASES)}
    single = [name for alternatives in names for name in alternatives.split("|")]
    if unknown := [name for name in single if name.partition("#")[0] not in known]:
        parser.error(f"no case {', '.join(unknown)}: choose from {', '.join([TUNE, *CASES])}")
    if reasons := list(missing()):
        print(f"not run: {', '.join(names)}: {'; '.join(reasons)}")
        return 1
    if len(lanes) > len(_gpus()):
        parser.error(f"{len(lanes)} lanes, and this machine has {len(_gpus())} GPU(s)")
    return run(given.folder.absolute(), given.minutes, lanes, cases)


def run(folder: Path, minutes: float, lanes: list[list[str]], cases: list[str]) -> int:
    """Run lanes beside each other, then cases on all GPUs, and write the report.

    Args:
        folder: Receives models, data, and a directory for each case.
        minutes: Longest time of a case.
        lanes: Cases of each GPU.
        cases: Cases that have all GPUs.
    """
    variables = {
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    os.environ.update(variables)
    gpus = _gpus()
    everything = Trial(folder, minutes, Lane(tuple(gpus), 0))
    everything.say(", ".join(f"{name} {importlib.metadata.version(name)}" for name in DISTRIBUTIONS))
    Trial(folder, minutes, Lane((gpus[0],), 0)).make_models()
    threads = []
    for index, names in enumerate(lanes):
        trial = Trial(folder, minutes, Lane((gpus[index],), int(gpus[index]) + 1))
        threads.append(threading.Thread(target=_run_all, args=(trial, names)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    _run_all(everything, cases)
    report = json.loads((folder / "report.json").read_text()) if (folder / "report.json").exists() else {}
    print(json.dumps({"direct / project": ratios(report)}), flush=True)
    return int(any(entry["exit_code"] for name, entry in report.items() if name not in FAILING))


REPORT = threading.Lock()


def _run_all(trial: Trial, names: list[str]) -> None:
    """Run cases one after another; a failure of one leaves the others."""
    for alternatives in names:
        for name in alternatives.split("|"):
            if name == MODELS:
                break
            try:
                entry = trial.case(name)
            except Exception as error:
                traceback.print_exc()
                entry = {"exit_code": 1, "error": repr(error)}
            entry["gpus"] = ",".join(trial.lane.gpus)
            print(json.dumps({name: entry}), flush=True)
            with REPORT:
                file = trial.folder / "report.json"
                report = json.loads(file.read_text()) if file.exists() else {}
                file.write_text(json.dumps({**report, name: entry}, indent=1))
            if not entry["exit_code"]:
                break


if __name__ == "__main__":
    sys.exit(main())
