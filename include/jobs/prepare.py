"""Training data and base model onto the shared file system: ``prepare.py SETTINGS``.

From the Hub (``HF_ENDPOINT`` and ``HF_TOKEN`` count) or from absolute paths. What is there already is kept: a
marker in each directory says where it came from. Directories appear whole or not at all, also when two runs
prepare the same one.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import gsm8k
import hub_files
from job_io import JobError, Settings, read_json, run, say, write_json
from merge import lacking_in_model

MARKER = ".llm_bridge_source.json"


def install(unfinished: Path, final: Path, source: dict[str, Any]) -> None:
    """Give a finished directory its name and its marker.

    :param unfinished: beside ``final``; gone afterwards.
    :raises JobError: something else holds the name.
    """
    write_json(unfinished / MARKER, source)
    try:
        unfinished.rename(final)
    except OSError:
        # Another run was faster, with the same or with something else.
        if read_json(final / MARKER) != source:
            raise JobError(
                f"{final} exists and is not what this run prepares ({source}). Remove it, or give the recipe "
                "another source."
            ) from None
        shutil.rmtree(unfinished, ignore_errors=True)


def is_there(directory: Path, wanted: dict[str, Any]) -> bool:
    """Whether ``directory`` already holds what is wanted.

    :param wanted: the marker's keys that must agree; a Hub revision is not among them, so a run never changes
        its inputs because someone pushed to the Hub.
    :raises JobError: it holds something else.
    """
    marker = read_json(directory / MARKER)
    if marker is None:
        if directory.exists() and any(directory.iterdir()):
            raise JobError(
                f"{directory} is not empty and was not made by llm-bridge (no {MARKER}): move it away"
            )
        return False
    if any(marker.get(key) != value for key, value in wanted.items()):
        raise JobError(
            f"{directory} holds {marker}, this run needs {wanted}. Remove it: it is made again then."
        )
    return True


def prepare_data(settings: Settings, skipped: list[str]) -> list[str]:
    """Write ``train.parquet`` and ``test.parquet`` into ``data_dir``; see gsm8k.py for their shape.

    :param skipped: gets ``data`` when they were there already.
    :returns: both paths.
    """
    source, config, final = settings["data_source"], settings["data_config"], Path(settings["data_dir"])
    files = [str(final / f"{split}.parquet") for split in gsm8k.SPLITS]
    if is_there(final, {"source": source, "config": config}):
        say(f"data: {final} is there already ({read_json(final / MARKER)}); to fetch it again, remove it")
        skipped.append("data")
        return files
    final.parent.mkdir(parents=True, exist_ok=True)
    # A place of this process's own: data are small, so nothing is lost by fetching them twice.
    with tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent) as scratch:
        origin, unfinished, revision = Path(source), Path(scratch) / "ready", None
        if not source.startswith("/"):
            origin = Path(scratch) / "download"
            revision = hub_files.download_data(source, config, origin, final)
        unfinished.mkdir()
        for split in gsm8k.SPLITS:
            rows = gsm8k.convert(origin, config, split, unfinished / f"{split}.parquet")
            say(f"data: {rows} rows of {split} from {source}")
        install(unfinished, final, {"source": source, "config": config, "revision": revision})
    return files


def prepare_model(settings: Settings, skipped: list[str]) -> str:
    """Fetch the base model, or check the one that the recipe points at.

    :param skipped: gets ``model`` when there was nothing to fetch.
    :returns: its directory.
    """
    source = settings["base_model"]
    if source.startswith("/"):
        _check_model(Path(source))
        say(f"model: {source}")
        skipped.append("model")
        return source
    final = Path(settings["model_dir"])
    if is_there(final, {"source": source}):
        say(f"model: {final} is there already ({read_json(final / MARKER)}); to fetch it again, remove it")
        skipped.append("model")
        return str(final)
    try:
        revision = _fetch_model(source, final)
    except (JobError, FileNotFoundError):
        # Two runs share a download, so that a large one goes on where it was cut off; the faster one has moved
        # it away under the other's hands.
        if not is_there(final, {"source": source}):
            raise
        shutil.rmtree(_unfinished(final), ignore_errors=True)
        revision = read_json(final / MARKER)["revision"]
    say(f"model: {source} at {revision} in {final}")
    return str(final)


def _fetch_model(source: str, final: Path) -> str:
    unfinished = _unfinished(final)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    revision = hub_files.download_model(source, unfinished, final)
    if lacking := lacking_in_model(unfinished):
        raise JobError(
            f"{source} on the Hub is not a model with tokenizer and weights: no {', no '.join(lacking)}"
        )
    install(unfinished, final, {"source": source, "revision": revision})
    return revision


def _unfinished(final: Path) -> Path:
    return final.with_name(f"{final.name}.unfinished")


def _check_model(model: Path) -> None:
    try:
        lacking = lacking_in_model(model)
        for path in model.iterdir():
            if path.is_file():
                path.open("rb").close()
    except OSError as error:
        raise JobError(
            f"base_model: {error.filename or model}: {error.strerror} on this node", kind="missing_path"
        ) from error
    if lacking:
        raise JobError(f"base_model: {model} is not a Hugging Face model: no {', no '.join(lacking)}")


def prepare(settings: Settings) -> dict[str, Any]:
    """Both, model last: it is the large one, and a mistake in the data shows early.

    :returns: ``{"train_files", "val_files", "model_path", "skipped"}``.
    """
    skipped: list[str] = []
    train, test = prepare_data(settings, skipped)
    model = prepare_model(settings, skipped)
    return {"train_files": train, "val_files": test, "model_path": model, "skipped": skipped}


if __name__ == "__main__":
    run(prepare)
