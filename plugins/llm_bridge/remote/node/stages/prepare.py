"""Put training data and base model onto the shared file system: ``python node.pyz prepare SETTINGS``.

They come from the Hub (``HF_ENDPOINT`` and ``HF_TOKEN`` apply) or from absolute paths. Existing directories are kept: a
marker file in each records its source. Directories appear complete or not at all, also when two runs prepare the same
one.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import StageResult
from llm_bridge.remote.node.common.environment import environment_hash
from llm_bridge.remote.node.common.job_io import (
    JobError,
    Settings,
    attempt,
    log_line,
    read_json,
    run,
    write_json,
)
from llm_bridge.remote.node.data import build
from llm_bridge.remote.node.evaluate import rows
from llm_bridge.remote.node.hub import download, loadable
from llm_bridge.remote.node.rewards import trial
from llm_bridge.remote.node.stages import data_report, ppo, sft

MARKER = ".llm_bridge_source.json"
LOCK_SECONDS = 5
# Between two log lines of a run that waits.
REMIND_SECONDS = 600
# Between a model's name and a hash, in the name of the directory of an unfinished download.
UNFINISHED = ".unfinished."
# Unfinished downloads of runs that have not written to them for this time are removed.
ABANDONED_SECONDS = 7 * 24 * 3600


def install(unfinished: Path, final: Path, source: dict[str, Any]) -> None:
    """Write the marker into a finished directory and rename it to its final path.

    Args:
        unfinished: A directory beside ``final``; it no longer exists afterwards.
        final: The path that the directory gets.
        source: Content of the marker.

    Raises:
        JobError: ``final`` exists and has another marker.
    """
    write_json(unfinished / MARKER, source)
    try:
        unfinished.rename(final)
    except OSError:
        # Another run was faster, with the same source or with another one.
        if read_json(final / MARKER) != source:
            raise JobError(
                f"{final} exists, but its source is not the one of this run ({source}). Remove it, or set another "
                "source in the recipe."
            ) from None
        shutil.rmtree(unfinished, ignore_errors=True)


def is_prepared(directory: Path, wanted: dict[str, Any]) -> bool:
    """Return True if ``directory`` holds what is wanted, False if it must still be made.

    Args:
        directory: A directory that this stage makes.
        wanted: Keys of the marker that must agree. A Hub revision is not among them, so a run never changes its inputs
            because of a push to the Hub.

    Raises:
        JobError: The directory holds something else.
    """
    marker = read_json(directory / MARKER)
    if marker is None:
        if directory.exists() and any(directory.iterdir()):
            raise JobError(
                f"{directory} is not empty and was not made by llm-bridge (no {MARKER}). Move it to another place."
            )
        return False
    if any(marker.get(key) != value for key, value in wanted.items()):
        raise JobError(
            f"{directory} was made from {marker}, but this run needs {wanted}. Remove it: this stage then makes it "
            "again."
        )
    return True


def prepare_data(settings: Settings, skipped: list[str], tokenizer: Any = None) -> None:
    """Write ``train.parquet`` and ``test.parquet`` into the directory of each entry of ``data``.

    Args:
        settings: The stage's settings.json.
        skipped: Receives ``data`` if all files exist already.
        tokenizer: The model's; needed where rows that are too long are not kept.
    """
    made = [_prepare_one(settings, entry, tokenizer) for entry in settings["data"]]
    if not any(made):
        skipped.append("data")


def _prepare_one(settings: Settings, entry: dict[str, Any], tokenizer: Any) -> bool:
    """Return True if the data were made, False if they exist already."""
    specification, final = entry["specification"], Path(entry["directory"])
    first = specification["sources"][0]
    source = {"source": first["source"], "config": first["config"]}
    if is_prepared(final, source):
        marker = read_json(final / MARKER)
        log_line(f"data: {final} exists already ({_origin(marker)}); to fetch it again, remove it")
        for path in _changed(marker.get("files", {})):
            log_line(
                f"WARNING: {path} has changed since {final} was made from it, and this run uses the rows of that time. "
                f"To use the changed file, remove {final} and run this stage again"
            )
        return False
    too_long = None
    if specification["too_long"] != "keep":
        too_long = data_report.view(settings, entry["stages"][0], tokenizer).too_long
    final.parent.mkdir(parents=True, exist_ok=True)
    # A directory of this process's own: two runs that prepare the same data at once both make them.
    with tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent) as scratch:
        unfinished = Path(scratch) / "ready"
        unfinished.mkdir()
        made = build.build(specification, unfinished, Path(scratch), final, too_long)
        revision = made["revisions"].get(first["source"])
        # The id of this result is an input of the training stages: with other rows they train again.
        result = StageResult(made["hash"], {}, made["hash"], "")
        write_json(unfinished / attempt_dir.STAGE_RESULT, attempt_dir.as_json(result))
        sources = [each["source"] for each in specification["sources"]]
        install(unfinished, final, {**source, "sources": sources, "revision": revision, **made})
    return True


def _origin(marker: dict[str, Any]) -> dict[str, Any]:
    return {key: marker.get(key) for key in ("source", "config", "revision")}


def _changed(files: dict[str, list[int]]) -> list[str]:
    """Return the files that are no longer as they were; one that does not exist any more is none of them."""
    return [
        path for path, state in files.items() if Path(path).exists() and build.file_state(Path(path)) != state
    ]


def data_reports(settings: Settings, tokenizer: Any) -> dict[str, dict[str, Any]]:
    """Return directory, files and report of the data of each training stage.

    Args:
        settings: The stage's settings.json.
        tokenizer: The base model's tokenizer.

    Raises:
        JobError: The training could not use the data.
    """
    found = {}
    for entry in settings["data"]:
        directory = Path(entry["directory"])
        made = read_json(directory / MARKER)
        for stage in entry["stages"]:
            seen = data_report.view(settings, stage, tokenizer)
            found[stage] = {
                "directory": str(directory),
                "train_files": str(directory / "train.parquet"),
                "val_files": str(directory / "test.parquet"),
                "report": data_report.report(directory, made, stage, seen),
            }
    return found


def prepare_model(settings: Settings, skipped: list[str], key: str = "base_model") -> str:
    """Download a model, or check the one at an absolute path.

    Args:
        settings: The stage's settings.json: ``base_model`` is the model, ``model_dir`` the directory of a download.
        skipped: Receives ``model`` if there was nothing to download.
        key: The recipe's key or the form's field that set the model, for messages.

    Returns:
        The model's directory.
    """
    source: str = settings["base_model"]
    if source.startswith("/"):
        _check_model(Path(source), key)
        log_line(f"model: {source}")
        skipped.append("model")
        return source
    final = Path(settings["model_dir"])
    remove_abandoned(final.parent)
    if is_prepared(final, {"source": source}):
        log_line(f"model: {final} exists already ({read_json(final / MARKER)}); to fetch it again, remove it")
        skipped.append("model")
        return str(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    with turn(final):
        if is_prepared(final, {"source": source}):
            log_line(f"model: {final} was made by another run meanwhile")
            skipped.append("model")
            return str(final)
        revision = _download_model(source, final, key)
    log_line(f"model: {source} at {revision} in {final}")
    return str(final)


@contextmanager
def turn(final: Path) -> Iterator[None]:
    """Hold the lock of a directory that several runs may want to make; wait for the run that holds it.

    Where the file system has no locks across nodes, two runs make the directory at once, each in its own place. The
    kernel releases the lock of a process that ends, however it ends.

    Args:
        final: The directory.
    """
    path = _lock_of(final)
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:  # another user's file; the download reports a directory that cannot be written
        _warn_unlocked(path, final, error)
        yield
        return
    try:
        _wait_for_lock(file, path, final)
        yield
    finally:
        os.close(file)


def _lock_of(final: Path) -> Path:
    return final.with_name(f".{final.name}.lock")


def remove_abandoned(models: Path) -> None:
    """Remove unfinished downloads of all models that no run resumes: old ones, whose lock is free.

    Args:
        models: Directory with the models.
    """
    for unfinished in sorted(models.glob(f"*{UNFINISHED}*")):
        lock = _lock_of(models / unfinished.name.partition(UNFINISHED)[0])
        try:
            age = time.time() - max(path.lstat().st_mtime for path in (unfinished, *unfinished.rglob("*")))
            if age < ABANDONED_SECONDS:
                continue
            file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(unfinished)
            finally:
                os.close(file)
        except OSError as error:  # in use, another user's, or no locks here: it costs only space
            log_line(f"model: the unfinished download {unfinished} is left: {error.strerror}")
        else:
            log_line(f"model: removed {unfinished}, an unfinished download of {age / 86400:.0f} days ago")


def _wait_for_lock(file: int, path: Path, final: Path) -> None:
    waited = 0
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waited % REMIND_SECONDS == 0:
                log_line(f"model: another run downloads {final}; waiting for it (its lock: {path})")
        except OSError as error:
            return _warn_unlocked(path, final, error)
        time.sleep(LOCK_SECONDS)
        waited += LOCK_SECONDS


def _warn_unlocked(path: Path, final: Path, error: OSError) -> None:
    log_line(f"model: {path} cannot be locked ({error.strerror}); another run may download {final} as well")


def _download_model(source: str, final: Path, key: str) -> str:
    # A directory of this run's own, in which its next attempt resumes the download. huggingface_hub deletes a file that
    # a second process has just completed and downloads it again, so two runs must not share one.
    run = hashlib.sha256(str(attempt().parent.parent).encode()).hexdigest()[:8]
    unfinished = final.with_name(f"{final.name}{UNFINISHED}{run}")
    revision = download.download_model(source, unfinished, final)
    if problems := loadable.problems(unfinished):
        raise JobError(
            f"{key}: {source} on the Hub is not a complete Hugging Face model: {'; '.join(problems)}",
            kind="bad_config",
        )
    install(unfinished, final, {"source": source, "revision": revision})
    return revision


def _check_model(model: Path, key: str) -> None:
    try:
        problems = loadable.problems(model)
        for path in model.iterdir():
            if path.is_file():
                path.open("rb").close()
    except OSError as error:
        raise JobError(
            f"{key}: {error.filename or model}: {error.strerror} on this node", kind="missing_path"
        ) from error
    if problems:
        raise JobError(
            f"{key}: {model} is not a complete Hugging Face model: {'; '.join(problems)}",
            kind="bad_config",
        )


def check_tokenizer(settings: Settings, model: Path) -> Any:
    """Load the tokenizer as training does, and format a conversation with the chat template of each training stage.

    Args:
        settings: The stage's settings.json; ``chat_templates`` maps the key of each stage that starts from the base
            model to its value.
        model: Directory of the base model.

    Returns:
        The tokenizer.

    Raises:
        JobError: Training could not load the tokenizer, or could not format its data.
    """
    tokenizer = loadable.load_tokenizer(model, "base_model", trust_remote_code=settings["trust_remote_code"])
    for key, template in settings["chat_templates"].items():
        loadable.check_chat_template(tokenizer, model, key, template)
    return tokenizer


def prepare_start(settings: Settings) -> None:
    """Download or check the model that the run starts from, and load its tokenizer as training does.

    Args:
        settings: The stage's settings.json; without ``start_model`` there is nothing to do.

    Raises:
        JobError: The model is incomplete, or training could not load its tokenizer or format its data.
    """
    if not (start := settings.get("start_model")):
        return
    wanted = {"base_model": start["source"], "model_dir": start["directory"]}
    model = Path(prepare_model(wanted, [], "start_from"))
    tokenizer = loadable.load_tokenizer(model, "start_from", trust_remote_code=settings["trust_remote_code"])
    for key, template in start["chat_templates"].items():
        loadable.check_chat_template(tokenizer, model, key, template)


def check_training(settings: Settings) -> None:
    """Compose verl's configuration of each training stage, which otherwise fails when the stage holds its GPUs.

    Args:
        settings: The stage's settings.json; ``trainings`` has the settings of each training stage.

    Raises:
        JobError: verl refuses a setting, data and settings do not fit together, or a package is missing; the message
            names the stage.
    """
    for stage, training in settings["trainings"].items():
        try:
            if stage == "sft":
                sft.check(training)
            else:
                ppo.check_steps(training)
        except JobError as error:
            raise JobError(f"{stage}.verl: {error}", kind=error.kind or "bad_config") from error
    if settings["trainings"]:
        log_line(f"verl accepts the settings of {' and '.join(settings['trainings'])}")


def check_reward(settings: Settings) -> None:
    """Try PPO's reward on rows of its data; in a run without PPO the evaluation's, on the rows that it scores.

    Args:
        settings: The stage's settings.json; ``reward_trial`` is ``refuse`` if missing.

    Raises:
        JobError: The reward failed.
    """
    if training := settings["trainings"].get("ppo") or settings.get("evaluation_reward"):
        trial.check(training, settings.get("reward_trial", "refuse"), attempt())


def check_evaluation(settings: Settings) -> None:
    """Make the prompts of the evaluation, which otherwise fail when the models are trained.

    Args:
        settings: The stage's settings.json; ``evaluation`` is missing in a run that does not evaluate.

    Raises:
        JobError: There are no held-out rows that can be used.
    """
    if not (wanted := settings.get("evaluation")):
        return
    used, prompts = rows.with_prompts(wanted)
    log_line(
        f"evaluation: {len(used)} rows of {wanted['test_file']} (evaluate.rows: {wanted['rows'] or 'all'}), prompts of "
        f"at most {max(map(len, prompts))} tokens"
    )
    if wanted["harness"] and not importlib.util.find_spec("lm_eval"):
        log_line(
            f"WARNING: evaluate.harness: lm_eval is not installed in {sys.executable}, so the evaluation will have no "
            f"{', '.join(wanted['harness'])}"
        )


def prepare(settings: Settings) -> dict[str, Any]:
    """Prepare data, then model, which is large, so a mistake in data or settings shows early; check both.

    Only where rows that are too long are not kept, the model's tokenizer is needed first.

    Returns:
        ``{"data", "model_path", "skipped"}``, and ``environment``, its hash, where it has one; ``data`` as of
        :func:`data_reports`.
    """
    skipped: list[str] = []
    environment = environment_hash()
    log_line(f"environment {environment or 'without a hash, not built by install-environment'}: {sys.prefix}")
    measured = any(entry["specification"]["too_long"] != "keep" for entry in settings["data"])
    if measured:
        model = prepare_model(settings, skipped)
        prepare_data(settings, skipped, check_tokenizer(settings, Path(model)))
    else:
        prepare_data(settings, skipped)
    for entry in settings["data"]:
        for stage in entry["stages"]:
            data_report.check_column(Path(entry["directory"]), stage)
    check_training(settings)
    check_reward(settings)
    if not measured:
        model = prepare_model(settings, skipped)
    tokenizer = check_tokenizer(settings, Path(model))
    prepare_start(settings)
    check_evaluation(settings)
    found = {"data": data_reports(settings, tokenizer), "model_path": model, "skipped": skipped}
    return found | ({"environment": environment} if environment else {})


def main() -> None:
    """Run the program (``python node.pyz prepare SETTINGS``)."""
    run(prepare)
