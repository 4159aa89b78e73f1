"""Train on the GPUs of this machine with the programs of a job, without Slurm: ``make gpu-trial``.

Needs the driver and an environment as of requirements-cluster-vllm.txt; without them it prints which cases did not run
and why, and ends with exit code 1. Settings are the recipes' own, with batches for one machine. Models are made here: a
small Llama, which SFT teaches sums first so that a reward can rise, and one of Llama-3.2-1B's shape with random weights
for time and memory. ``direct:CASE`` starts verl's trainer without llm-bridge, with the arguments that the job would
use; ``CASE#2`` repeats a case.

build/gpu-trial/report.json has the numbers, build/gpu-trial/CASE/output.log each case's output.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))

from llm_bridge.remote import attempt_dir, node_archive

PPO, GRPO = "gsm8k_llama32_1b", "gsm8k_grpo_llama32_1b"
DISTRIBUTIONS = ("torch", "transformers", "verl", "vllm", "flash-attn", "ray")
ROLLOUT, ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
MEMORY = f"{ROLLOUT}.gpu_memory_utilization"
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
    MEMORY: 0.5,
}
CRITIC = {f"{ACTOR}.ppo_micro_batch_size_per_gpu": 32, "critic.ppo_micro_batch_size_per_gpu": 32}
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


CASES = {
    "grpo-small": Case(GRPO, "small", 25, SMALL),
    "ppo-small": Case(PPO, "small", 10, SMALL | CRITIC),
    "ppo-1b": Case(PPO, "1b", 4, LARGE),
    "ppo-1b-half": Case(PPO, "1b", 4, LARGE | {MEMORY: 0.5}),
    "grpo-1b": Case(GRPO, "1b", 8, GROUPS | {MEMORY: 0.5}),
    "lora-1b": Case(GRPO, "1b", 4, GROUPS | LORA | {MEMORY: 0.5}),
}
# SFT's tuner on rows of the small data, from a micro batch of 8.
TUNE = "tune-1b"
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


class Trial:
    """Cases, and what they ended with.

    Args:
        folder: Receives models, data, and a directory for each case.
        minutes: Longest time of a case.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes = folder, minutes
        folder.mkdir(parents=True, exist_ok=True)
        self.archive = folder / attempt_dir.NODE_ARCHIVE
        self.archive.write_bytes(node_archive.build())
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def run(self, name: str, command: list[str]) -> tuple[int, float, int]:
        """Run a program of a case.

        Returns:
            Exit code, seconds, and the most GPU memory in use meanwhile in MiB (of all processes, on the first GPU).
        """
        log = self.folder / name / "output.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        most, done, began = [0], threading.Event(), time.monotonic()
        watcher = threading.Thread(target=_watch_memory, args=(most, done))
        watcher.start()
        with log.open("ab") as output:
            try:
                code = subprocess.run(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=log.parent,
                    timeout=60 * self.minutes,
                ).returncode
            except subprocess.TimeoutExpired:
                code = 124
        done.set()
        watcher.join()
        seconds = round(time.monotonic() - began, 1)
        self.say(f"{name}: exit code {code} after {seconds} s, at most {most[0]} MiB on the first GPU")
        if code:
            print("\n".join(log.read_text(errors="replace").splitlines()[-25:])[-4000:], flush=True)
        return code, seconds, most[0]

    def program(self, name: str, *arguments: str) -> list[str]:
        """Return the command of a program of a job."""
        return [sys.executable, str(self.archive), name, *arguments]

    def make_models(self, small: bool = True, large: bool = True) -> None:
        """Make data and both models; SFT teaches the small one."""
        if small and not (self.folder / "small" / "config.json").exists():
            self.run(
                "assets", [sys.executable, str(Path(__file__).resolve()), "--make-assets", str(self.folder)]
            )
        if not small or (self.folder / "sft" / "model" / "config.json").exists():
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

    def train(self, name: str, case: Case, direct: bool) -> dict[str, Any]:
        """Train one case, and return its numbers."""
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
            "gpus_per_node": _gpus(),
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
        text = (attempt / "output.log").read_text(errors="replace")
        return {"exit_code": code, "wall_s": seconds, "gpu_mib": most, **numbers(text, verl)}

    def tune(self, name: str) -> dict[str, Any]:
        """Run SFT's tuner on the large model and the recipe's settings, and return its report."""
        from llm_bridge.config.loader import load_recipe

        file = self.folder / name / attempt_dir.SETTINGS
        file.parent.mkdir(parents=True, exist_ok=True)
        changes = {"data.train_batch_size": 64 * _gpus(), "data.micro_batch_size_per_gpu": 8}
        settings = {
            **self.common(name),
            "model_path": str(self.folder / "1b"),
            "checkpoint_dir": str(file.parent / "checkpoints"),
            "verl": {**load_recipe(PPO).sft.verl, **changes, "data.max_length": 512},
        }
        file.write_text(json.dumps(settings, indent=1))
        code, seconds, most = self.run(name, self.program("tune", str(file)))
        report = attempt_dir.read_json(str(file.with_name(attempt_dir.RESULT))) or {}
        return {"exit_code": code, "wall_s": seconds, "gpu_mib": most, **report}


def numbers(text: str, verl: dict[str, Any]) -> dict[str, Any]:
    """Return a training's numbers: medians over the steps after the second, and each step's score.

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
    steady = found[2:] or found
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


def _gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def _watch_memory(most: list[int], done: threading.Event) -> None:
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    while not done.wait(0.5):
        used = subprocess.run(command, capture_output=True, text=True).stdout.split()
        most[0] = max([most[0], *(int(number) for number in used[:1])])


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
    parser.add_argument(
        "cases", nargs="*", help=f"{TUNE}, {', '.join(CASES)}; these also as direct:NAME; default: all"
    )
    given = parser.parse_args()
    if given.make_assets:
        make_assets(given.make_assets)
        return 0
    names = given.cases or [TUNE, *CASES]
    known = {TUNE, *CASES, *(f"direct:{name}" for name in CASES)}
    if unknown := [name for name in names if name.partition("#")[0] not in known]:
        parser.error(f"no case {', '.join(unknown)}: choose from {', '.join([TUNE, *CASES])}")
    if reasons := list(missing()):
        print(f"not run: {', '.join(names)}: {'; '.join(reasons)}")
        return 1
    return run(Trial(given.folder.absolute(), given.minutes), names)


def run(trial: Trial, names: list[str]) -> int:
    """Run cases on a Ray cluster of this machine, and write the report."""
    variables = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": str(_gpus()),
        "RENDEZVOUS_HOST": "localhost",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    os.environ.update(variables)
    trial.say(", ".join(f"{name} {importlib.metadata.version(name)}" for name in DISTRIBUTIONS))
    trial.make_models()
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
    start = ["start", "--head", "--port=6399", "--disable-usage-stats", f"--num-gpus={_gpus()}"]
    if trial.run("ray", [*ray, *start, "--include-dashboard=true"])[0]:
        return 1
    os.environ["RAY_ADDRESS"] = "127.0.0.1:6399"
    file = trial.folder / "report.json"
    report: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    try:
        for name in names:
            case = name.removeprefix("direct:").partition("#")[0]
            folder = name.replace(":", "-")
            if case == TUNE:
                report[name] = trial.tune(folder)
            else:
                report[name] = trial.train(folder, CASES[case], name.startswith("direct:"))
            print(json.dumps({name: report[name]}), flush=True)
            file.write_text(json.dumps(report, indent=1))
    finally:
        trial.run("ray", [*ray, "stop", "--force"])
    return int(any(entry["exit_code"] for entry in report.values()))


if __name__ == "__main__":
    sys.exit(main())
