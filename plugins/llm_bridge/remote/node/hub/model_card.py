"""Model card of a trained model, in the Hub's format: the origin of the model, its evaluation, and how to load it.

The same training gives the same card, byte for byte, so that a repeated upload makes no new commit.
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.environment import environment_hash
from llm_bridge.remote.node.hub.upload_errors import BadInput
from llm_bridge.version import VERSION

CARD = "README.md"
# Tag in the metadata of a generated card: a card without it was written by a person, and is not replaced.
TAG = "llm-bridge"
# Packages whose versions decide a model.
PACKAGES = ("verl", "transformers", "torch", "vllm", "sglang")
# Written by ``prepare`` into the directories that it makes (``stages/prepare.py``).
SOURCE = ".llm_bridge_source.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def make_card(repo_id: str, run: dict[str, Any], *, is_adapter: bool, picture: str | None = None) -> str:
    """Return the text of the card.

    Args:
        repo_id: Repository on the Hub, ``OWNER/NAME``.
        run: Key ``card`` of the upload's settings (``pipeline/publication.py``).
        is_adapter: True for a LoRA adapter.
        picture: File beside the card with the curves of the training; None for none.
    """
    from huggingface_hub import EvalResult, ModelCardData

    evaluation = evaluation_of(run)
    data = _data(run)
    base = run["base_model"]
    names = {name for entry in data for name in entry["sources"]}
    sources = sorted(name for name in names if _HUB_ID.fullmatch(name))
    # remote/node/hub/published.py finds the score by metric, hash and conditions again.
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=_evaluated(data),
            dataset_name=f"held-out rows of {_evaluated(data)}",
            dataset_split="test",
            dataset_revision=str(evaluation["data"]["hash"]),
            metric_type=str(evaluation["metric"]),
            metric_name=str(evaluation["metric"]),
            metric_value=score["score"],
            metric_config=evaluation.get("conditions"),
        )
        for score in [evaluated(evaluation)]
        if score
    ]
    card = ModelCardData(
        model_name=repo_id.partition("/")[2],
        base_model=base if _HUB_ID.fullmatch(base) else None,
        datasets=sources or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[TAG, "verl"],
        eval_results=results or None,
    )
    parts = [
        f"# {repo_id.partition('/')[2]}",
        run.get("description") or "",
        _origin(run, base, data),
        _jobs(run),
        f"## Curves\n\n![Curves of the training]({picture})" if picture else "",
        _scores(evaluation),
        _harness(evaluation),
        _loading(repo_id, base, is_adapter=is_adapter),
    ]
    text = "\n\n".join(part for part in parts if part)
    return f"---\n{card.to_yaml()}\n---\n\n{text}\n"


def check_metadata(card: Path, endpoint: str) -> None:
    """Let the Hub validate the metadata of a card, before the weights are sent: it refuses the commit of a wrong one.

    ``ModelCard.validate`` of huggingface_hub 1.33 sends the card to huggingface.co, whatever the endpoint.

    Args:
        card: Path of the card.
        endpoint: URL of the Hub.

    Raises:
        BadInput: The metadata is not YAML, or the Hub refuses it.
    """
    import yaml
    from huggingface_hub import ModelCard
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

    try:
        content = str(ModelCard(card.read_text("utf-8", "replace")))
        answer = get_session().post(
            f"{endpoint}/api/validate-yaml", json={"repoType": "model", "content": content}
        )
        if answer.status_code in (404, 405):
            print(
                f"{endpoint} does not validate model cards: the metadata of {CARD} are checked with the commit"
            )
            return
        if answer.status_code == 400:
            raise ValueError(answer.text)
        hf_raise_for_status(answer)
    except (ValueError, yaml.YAMLError) as error:
        raise BadInput(
            f"{card}: the metadata between the two lines '---' is wrong: {_problems(str(error))}\n"
            "Nothing was uploaded: correct it (https://huggingface.co/docs/hub/model-cards)."
        ) from None


def _problems(answer: str) -> str:
    """Return the problems in the Hub's answer, or another error's text as it is."""
    try:
        return "; ".join(str(problem["message"]) for problem in json.loads(answer)["errors"])
    except (ValueError, KeyError, TypeError):
        return answer


def score(run: dict[str, Any]) -> float | None:
    """Return the score of the published model; None without an evaluation.

    Args:
        run: As for :func:`make_card`.
    """
    found = evaluated(evaluation_of(run))
    return found["score"] if found else None


def evaluation_of(run: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluation of the run; an empty one where it has none.

    Args:
        run: As for :func:`make_card`.
    """
    found: dict[str, Any] = _result(run.get("evaluation")).get("evaluation") or {}
    return found


def evaluated(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """Return the published model's part of an evaluation; None where it was not evaluated.

    Args:
        evaluation: Result of :func:`evaluation_of`.
    """
    models = evaluation.get("models") or {}
    found: dict[str, Any] | None = models.get("rl") or models.get("sft")
    return found


def is_generated(text: str) -> bool:
    """Return True if a card was made by :func:`make_card`.

    Args:
        text: The card.
    """
    metadata_lines = text.split("\n---", 1)[0].splitlines()
    return text.startswith("---") and f"- {TAG}" in metadata_lines


def _data(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return stage, sources (name -> revision), the first of them, and hash of the data of each training stage."""
    found = []
    for stage, directory in run["data"].items():
        marker = _json(Path(directory) / SOURCE)
        first = str(marker.get("source", directory))
        revisions = {first: marker.get("revision"), **(marker.get("revisions") or {})}
        sources = {_name(source): revisions.get(source) for source in marker.get("sources") or [first]}
        found.append({"stage": stage, "sources": sources, "source": _name(first), "hash": marker.get("hash")})
    return found


def _origin(run: dict[str, Any], base: str, data: list[dict[str, Any]]) -> str:
    revision = _json(Path(run["base_model_dir"]) / SOURCE).get("revision")
    lines = [("Base model", f"{_name(base)}{_at(revision)}"), ("Recipe", run["recipe"]), ("Run", run["run"])]
    if started := run.get("started_from"):
        lines.append(("Started from", started))
    for entry in data:
        content = f", hash `{entry['hash']}`" if entry["hash"] else ""
        sources = ", ".join(f"{name}{_at(revision)}" for name, revision in entry["sources"].items())
        lines.append((f"Data of {entry['stage']}", f"{sources}{content}"))
    lines.append(("llm-bridge", VERSION))
    if environment := environment_hash():
        lines.append(("Environment", f"`{environment}`"))
    for package in PACKAGES:
        try:
            lines.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return "## Training\n\n" + "\n".join(f"* {name}: {value}" for name, value in lines)


def _jobs(run: dict[str, Any]) -> str:
    """Return the table of the Slurm jobs, with the GPU-hours of each, and the Ray jobs, which ran in them."""
    rows, total, at_least = [], 0.0, ""
    ray_ids = [
        f"`{found}`"
        for job in run["jobs"]
        for attempt in attempt_dir.ray_jobs_in(job["directory"])
        if (found := attempt_dir.read(f"{attempt}/{attempt_dir.RAY_JOB_ID}"))
    ]
    for job in run["jobs"]:
        for attempt in map(Path, attempt_dir.attempts_in(job["directory"])):
            job_id, hours = attempt_dir.job_of(str(attempt)), _gpu_hours(attempt, job["gpus"])
            if job_id and hours is None and (attempt / attempt_dir.STARTED).exists():
                rows.append(f"| {job['name']} | {job_id} | unknown |")
                at_least = "at least "
            elif job_id and hours is not None:
                rows.append(f"| {job['name']} | {job_id} | {hours:.2f} |")
                total += hours
    table = [
        "| stage | Slurm job | GPU-hours |",
        "|---|---|---|",
        *rows,
        f"| all | | {at_least}{total:.2f} |",
    ]
    parts = ["\n".join(table)] if rows else []
    if ray_ids:
        parts.append(f"Ray jobs in them: {', '.join(ray_ids)}.")
    if links := _wandb_links(run):
        parts.append(f"Curves in W&B: {', '.join(links)}.")
    return "\n\n".join(["## Jobs", *parts]) if parts else ""


def _wandb_links(run: dict[str, Any]) -> list[str]:
    """Return a link to each W&B run of the training; several attempts of a stage have the same one."""
    found: dict[str, str] = {}
    for job in run["jobs"]:
        directory = job["directory"]
        for attempt in (*attempt_dir.attempts_in(directory), *attempt_dir.ray_jobs_in(directory)):
            url = str(_json(Path(attempt) / attempt_dir.WANDB_RUN).get("url"))
            if re.fullmatch(r"https?://[^\s()<>]+", url):
                found[url] = job["name"]
    return [f"[{name}]({url})" for url, name in found.items()]


def _gpu_hours(attempt: Path, gpus: int) -> float | None:
    """Return the GPU-hours of an attempt; None where it has not started, or its end is unknown."""
    started = _json(attempt / attempt_dir.STARTED).get("started")
    ended = _json(attempt / attempt_dir.OUTCOME).get("ended")
    return (ended - started) * gpus / 3600 if started and ended else None


def _evaluated(data: list[dict[str, Any]]) -> str:
    """Return the source of the data whose held-out rows are evaluated: those of the last training stage."""
    return str(data[-1]["source"]) if data else "unknown"


def _scores(evaluation: dict[str, Any]) -> str:
    models = evaluation.get("models") or {}
    if not models:
        return ""
    lines = [f"| model | {evaluation['metric']} | 95 % interval |", "|---|---|---|"]
    for name, found in models.items():
        low, high = found["interval"]
        lines.append(f"| {name} | {found['score']:.4f} | {low:.4f} to {high:.4f} |")
    for name, found in (evaluation.get("differences") or {}).items():
        low, high = found["interval"]
        lines.append(f"| {name} | {found['mean']:+.4f} | {low:+.4f} to {high:+.4f} |")
    about = f"{evaluation.get('rows')} held-out rows, seed {evaluation.get('seed')}"
    if content := (evaluation.get("data") or {}).get("hash"):
        about += f", data hash `{content}`"
    return f"## Evaluation\n\n{about}.\n\n" + "\n".join(lines)


def _harness(evaluation: dict[str, Any]) -> str:
    """Return the table of lm-evaluation-harness: a row for each task and metric, a column for each model."""
    models = list(evaluation.get("models") or {})
    rows = []
    for task, found in (evaluation.get("harness") or {}).items():
        results = {name: found[name] for name in models if isinstance(found.get(name), dict)}
        metrics = dict.fromkeys(key for result in results.values() for key in result)
        for metric in metrics:
            values = [results.get(name, {}).get(metric) for name in models]
            if "_stderr" in metric or not any(isinstance(value, (int, float)) for value in values):
                continue
            cells = [f"{value:.4f}" if isinstance(value, (int, float)) else "" for value in values]
            rows.append(f"| {task} | {metric} | {' | '.join(cells)} |")
    if not rows:
        return ""
    header = [f"| task | metric | {' | '.join(models)} |", f"|{'---|' * (2 + len(models))}"]
    return "## lm-evaluation-harness\n\n" + "\n".join([*header, *rows])


def _loading(repo_id: str, base: str, *, is_adapter: bool) -> str:
    kind, package = (
        ("AutoPeftModelForCausalLM", "peft") if is_adapter else ("AutoModelForCausalLM", "transformers")
    )
    imports = [f"from {package} import {kind}", "from transformers import AutoTokenizer"]
    code = [
        *(imports if is_adapter else [f"from transformers import {kind}, AutoTokenizer"]),
        "",
        f'model = {kind}.from_pretrained("{repo_id}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")',
    ]
    return "## Use\n\n```python\n" + "\n".join(code) + "\n```"


def _name(origin: str) -> str:
    """Return the name of a model or of data without the directories of the cluster."""
    return Path(origin).name if origin.startswith("/") else origin


def _at(revision: Any) -> str:
    return f" at `{revision}`" if revision else ""


def _result(stage_directory: str | None) -> dict[str, Any]:
    """Return the result of a stage's newest attempt that has one."""
    for attempt in reversed(attempt_dir.attempts_in(stage_directory) if stage_directory else []):
        if found := _json(Path(attempt) / attempt_dir.RESULT):
            return found
    return {}


def _json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file; an empty one where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
