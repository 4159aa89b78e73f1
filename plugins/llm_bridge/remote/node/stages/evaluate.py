"""Stage evaluate: base, SFT and RL model on the held-out rows (``python node.pyz evaluate SETTINGS``).

All models answer the same prompts, made of the same tokens, with the same seed and decoding; the recipe's reward scores
the answers. ``remote/node/evaluate/generate.py`` has the choice of the engine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import StageResult
from llm_bridge.remote.node.common import gpu_use, programs
from llm_bridge.remote.node.common.job_io import (
    JobError,
    Settings,
    attempt,
    log_line,
    read_json,
    run,
    write_json,
)
from llm_bridge.remote.node.evaluate import generate, report, rows, scores, statistics
from llm_bridge.remote.node.hub import loadable, published
from llm_bridge.remote.node.verl import tracking

PROGRAM = "evaluate-generate"
SAMPLES = 20
# Characters of a text among the samples, which pass through Airflow's database.
SAMPLE_LENGTH = 1000


def evaluate(settings: Settings) -> dict[str, Any]:
    """Evaluate the models, and write all answers and scores into the stage's directory.

    Args:
        settings: The stage's settings.json: ``models`` (name -> directory), ``tokenizer`` (the base model's directory),
            ``test_file``, ``reward``, ``rows``, ``seed``, ``samples``, ``decoding``, ``device``, ``gpus``,
            ``answers_file``, ...

    Returns:
        ``{"evaluation": {...}}``, as docs/evaluation.md shows it.

    Raises:
        JobError: A model, the data or the reward cannot be used.
    """
    folder = attempt()
    test_file, seed, decoding = Path(settings["test_file"]), settings["seed"], settings["decoding"]
    check_models(settings["models"])
    data = {"path": str(test_file), "hash": data_hash(test_file)}
    metric = scores.metric_name(settings["reward"])
    conditions = conditions_hash(settings)
    before: dict[str, Any] = {}
    if settings["published"]:  # before the GPUs work for hours
        before["published"] = published.score(settings["published"], metric, data["hash"], conditions)
    used, prompts = rows.with_prompts(settings)
    scorer = scores.Scorer(settings["reward"], folder)
    engine = generate.engine_for(settings["device"])
    log_line(f"{len(used)} rows of {test_file}, {settings['samples']} answer(s) each, engine {engine}")
    answers: dict[str, list[list[generate.Answer]]] = {}
    points: dict[str, list[list[float]]] = {}
    timeouts: dict[str, int] = {}
    with scorer:
        for name, model in settings["models"].items():
            answers[name] = _answers(name, model, settings, prompts, engine, folder)
            texts = [[answer.text for answer in some] for some in answers[name]]
            points[name], timeouts[name] = scorer.score(used, texts)
            log_line(f"{name}: mean score {fmean(map(fmean, points[name])):.4f}")
    evaluation = {
        "metric": metric,
        "rows": len(used),
        "seed": seed,
        "decoding": {**decoding, "samples": settings["samples"], "engine": engine},
        "data": data,
        "conditions": conditions,
        **summarize(settings["models"], answers, points, timeouts, seed),
        "samples": side_by_side(used, answers, points),
        "harness": harness(settings, folder),
        **before,
    }
    everything = [
        {
            "row": row["number"],
            "prompt": row["prompt"],
            "truth": row["ground_truth"],
            "answers": {
                name: [
                    {**answer._asdict(), "score": score}
                    for answer, score in zip(answers[name][i], points[name][i])  # noqa: B905
                ]
                for name in answers
            },
        }
        for i, row in enumerate(used)
    ]
    write_json(Path(settings["answers_file"]), {"evaluation": evaluation, "rows": everything})
    # Made anew the next time, which somebody has asked for then.
    shutil.rmtree(_finished(settings), ignore_errors=True)
    for line in report.table(evaluation):
        log_line(line)
    _report_to_wandb(settings, evaluation)
    return {"evaluation": evaluation} | tracking.noted_wandb_run(folder)


def data_hash(test_file: Path) -> str:
    """Return the hash of prepared data, as the stage prepare has computed it; else that of the file."""
    made = attempt_dir.read_shape(StageResult, str(test_file.parent), attempt_dir.STAGE_RESULT)
    return made.id if made else hashlib.sha256(test_file.read_bytes()).hexdigest()


def conditions_hash(settings: Settings) -> str:
    """Return a hash of what decides a score besides model and data: the reward, the rows, prompts and decoding.

    Scores of other conditions cannot be compared, also under the same name of a metric.
    """
    keys = ("reward", "rows", "seed", "samples", "decoding", "chat_template", "template_options")
    text = json.dumps({key: settings[key] for key in keys}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_adapter(model: str) -> bool:
    """Return True for the directory of a LoRA adapter."""
    return Path(model, loadable.ADAPTER_CONFIG).exists() and not Path(model, "config.json").exists()


def check_models(models: dict[str, str]) -> None:
    """Check all models, before the first one answers for hours.

    Args:
        models: Name -> directory.

    Raises:
        JobError: A model cannot be loaded.
    """
    for name, model in models.items():
        find = loadable.adapter_problems if is_adapter(model) else loadable.problems
        if problems := find(Path(model)):
            raise JobError(
                f"the {name} model {model} cannot be loaded: {'; '.join(problems)}", kind="missing_path"
            )


def _finished(settings: Settings) -> Path:
    """Return the folder of the answers that earlier attempts have finished."""
    return Path(settings["answers_file"]).with_name(attempt_dir.EVALUATION_FINISHED)


def _answers(
    name: str, model: str, settings: Settings, prompts: list[list[int]], engine: str, directory: Path
) -> list[list[generate.Answer]]:
    """Generate with one model, in a process of its own, unless an earlier attempt has."""
    folder = directory / attempt_dir.EVALUATION
    folder.mkdir(exist_ok=True)
    given, made = folder / f"{name}.json", folder / f"{name}-answers.json"
    wanted = {
        "model": model,
        "adapter_base": settings["tokenizer"] if is_adapter(model) else None,
        "prompts": prompts,
        "engine": engine,
        **settings["decoding"],
        **{key: settings[key] for key in ("tokenizer", "trust_remote_code", "samples")},
        **{key: settings[key] for key in ("seed", "device", "gpus")},
    }
    kept = _finished(settings) / f"{name}.json"
    wanted_id = answers_id(wanted)
    earlier = read_json(kept)
    if isinstance(earlier, dict) and earlier.get("id") == wanted_id:
        log_line(f"the answers of the {name} model {model} are those of an earlier attempt ({kept})")
        return [[generate.Answer(*answer) for answer in some] for some in earlier["answers"]]
    write_json(given, {**wanted, "answers": str(made)})
    log_line(f"generating with the {name} model {model}")
    with gpu_use.sampled(directory):
        ended = subprocess.run(
            programs.command(PROGRAM, str(given)), env={"HF_HUB_OFFLINE": "1", **os.environ}
        )
    if ended.returncode:
        killed = (
            "; killed, most likely because memory ran out: raise evaluate.mem"
            if ended.returncode == -9
            else ""
        )
        raise JobError(
            f"the {name} model {model} gave no answers: {engine} ended with exit code {ended.returncode} (its output "
            f"is above){killed}"
        )
    found = read_json(made)
    kept.parent.mkdir(exist_ok=True)
    write_json(kept, {"id": wanted_id, "answers": found})
    return [[generate.Answer(*answer) for answer in some] for some in found]


def answers_id(wanted: Settings) -> str:
    """Return a hash of what decides a model's answers: the settings, the engine's version, and the model's files.

    Args:
        wanted: Settings of ``remote/node/evaluate/generate.py``.
    """
    folders = [Path(folder) for folder in (wanted["model"], wanted["adapter_base"]) if folder]
    files = [
        [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        for folder in folders
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    text = json.dumps([wanted, metadata.version(wanted["engine"]), files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def summarize(
    models: dict[str, str],
    answers: dict[str, list[list[generate.Answer]]],
    points: dict[str, list[list[float]]],
    timeouts: dict[str, int],
    seed: int,
) -> dict[str, Any]:
    """Return ``models`` and ``differences`` of an evaluation.

    Args:
        models: Name -> directory, in the order base, sft, rl.
        answers: Name -> the answers to each prompt.
        points: Name -> their scores.
        timeouts: Name -> number of answers that count as 0 because the reward did not end.
        seed: The evaluation's.
    """
    found: dict[str, Any] = {}
    means = {name: [fmean(some) for some in points[name]] for name in models}
    for name, path in models.items():
        flat = [answer for some in answers[name] for answer in some]
        mean, low, high = statistics.estimate(means[name], seed)
        tokens = sum(answer.tokens for answer in flat)
        found[name] = {
            "path": path,
            "score": mean,
            "interval": [low, high],
            "tokens": tokens,
            "length_mean": tokens / len(flat),
            "cut_share": sum(answer.cut for answer in flat) / len(flat),
            **({"reward_timeouts": timeouts[name]} if timeouts.get(name) else {}),
        }
    differences = {}
    for left, right in (("rl", "base"), ("rl", "sft"), ("sft", "base")):
        if left in models and right in models:
            mean, low, high = statistics.difference(means[left], means[right], seed)
            differences[f"{left}-{right}"] = {"mean": mean, "interval": [low, high]}
    return {"models": found, "differences": differences}


def side_by_side(
    used: list[dict[str, Any]],
    answers: dict[str, list[list[generate.Answer]]],
    points: dict[str, list[list[float]]],
) -> list[dict[str, Any]]:
    """Return rows, spread over all, with the first answer of each model."""
    step = max(1, len(used) // SAMPLES)
    return [
        {
            "prompt": _short("\n\n".join(str(message["content"]) for message in used[i]["prompt"])),
            "truth": _short(str(used[i]["ground_truth"])),
            "answers": {
                name: {"text": _short(answers[name][i][0].text), "score": points[name][i][0]}
                for name in answers
            },
        }
        for i in range(0, len(used), step)
    ][:SAMPLES]


def _short(text: str) -> str:
    return text if len(text) <= SAMPLE_LENGTH else f"{text[:SAMPLE_LENGTH]} ..."


def harness(settings: Settings, directory: Path) -> dict[str, Any]:
    """Return the results of tasks of lm-evaluation-harness: task -> model -> metric -> value.

    A task without a result does not end the evaluation: its ``error`` is the result.
    """
    tasks: list[str] = settings["harness"]
    if not tasks:
        return {}
    if not importlib.util.find_spec("lm_eval"):
        text = f"lm_eval is not installed in {sys.executable}"
        log_line(f"WARNING: no {', '.join(tasks)}: {text}")
        return {task: {"error": text} for task in tasks}
    found: dict[str, Any] = {task: {} for task in tasks}
    for name, model in settings["models"].items():
        output = directory / attempt_dir.EVALUATION / f"{name}-harness"
        arguments = (
            f"pretrained={settings['tokenizer']},peft={model}" if is_adapter(model) else f"pretrained={model}"
        )
        if settings["trust_remote_code"]:
            arguments += ",trust_remote_code=True"
        command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments]
        command += ["--tasks", ",".join(tasks), "--output_path", str(output), "--seed", str(settings["seed"])]
        command += ["--batch_size", "auto", "--device", settings["device"]]
        if settings["harness_chat_template"]:
            command.append("--apply_chat_template")
        log_line(f"lm_eval with the {name} model: {', '.join(tasks)}")
        hours = settings["harness_hours"]
        try:
            ended = f"exit code {subprocess.run(command, timeout=hours and hours * 3600).returncode}"
        except subprocess.TimeoutExpired:
            ended = f"ended after {hours:g} hours, evaluate.harness_hours"
        results = harness_results(output)
        for task in tasks:
            found[task][name] = results.get(
                task, {"error": f"lm_eval wrote no result ({ended}; its output is in the log)"}
            )
    return found


def harness_results(output: Path) -> dict[str, Any]:
    """Return the results that lm_eval has written below a directory: task -> metric -> value."""
    files = sorted(output.rglob("results_*.json"))
    return dict(json.loads(files[-1].read_text(encoding="utf-8"))["results"]) if files else {}


def _report_to_wandb(settings: Settings, evaluation: dict[str, Any]) -> None:
    """Log the scores as a run of W&B of their own; a server that does not answer never ends an evaluation."""
    if "wandb" not in settings["logger"]:
        return
    try:
        os.environ.update(tracking.environment(settings, os.environ, attempt()))
        import wandb

        values = {
            f"evaluation/{name}/{key}": found[key]
            for name, found in evaluation["models"].items()
            for key in ("score", "length_mean", "cut_share")
        }
        values |= {f"evaluation/{name}": found["mean"] for name, found in evaluation["differences"].items()}
        with wandb.init(
            entity=settings["wandb_entity"],
            project=settings["project_name"],
            name=f"{settings['experiment_name']} evaluation",
            job_type="evaluate",
            config={key: evaluation[key] for key in ("metric", "rows", "seed", "decoding", "data")},
        ) as wandb_run:
            tracking.note_wandb_run(attempt())
            wandb_run.summary.update(values)
    except Exception as error:
        log_line(f"WARNING: the evaluation is not in W&B: {error!r:.300}")


def main() -> None:
    """Run the program (``python node.pyz evaluate SETTINGS``)."""
    run(evaluate)
