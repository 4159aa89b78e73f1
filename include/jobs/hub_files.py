"""Downloads from the Hub, with errors that say what to do. Needs huggingface_hub; 1.33 is what was tested."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Optional

from job_io import JobError

# A model's files that training needs; the same weights in other formats (original/, *.gguf) stay where they are.
MODEL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py"]
NOT_MODEL_FILES = ["original/*", "onnx/*", "*/original/*", "*/onnx/*"]


def download_model(repo_id: str, directory: Path, by_hand: Path) -> str:
    """Fetch a model; goes on where an earlier try was cut off.

    :param directory: gets the files.
    :param by_hand: where the user may put a copy instead, for messages.
    :returns: the commit that was fetched.
    :raises JobError: offline, refused, or no such repository.
    """

    def fetch(api: Any) -> str:
        info = api.model_info(repo_id)
        names = [file.rfilename for file in info.siblings or []]
        weights = "*.safetensors" if any(name.endswith(".safetensors") for name in names) else "*.bin"
        api.snapshot_download(
            repo_id,
            revision=info.sha,
            local_dir=directory,
            allow_patterns=[*MODEL_FILES, weights],
            ignore_patterns=NOT_MODEL_FILES,
        )
        return info.sha

    return _explained(fetch, "base_model", repo_id, "model", by_hand)


def download_data(repo_id: str, config: str, directory: Path, by_hand: Path) -> str:
    """Fetch the parquet files of one configuration of a data set; otherwise as ``download_model``."""

    def fetch(api: Any) -> str:
        sha = api.dataset_info(repo_id).sha
        patterns = [f"{config}/*.parquet", "train*.parquet", "test*.parquet"]
        api.snapshot_download(
            repo_id, repo_type="dataset", revision=sha, local_dir=directory, allow_patterns=patterns
        )
        return sha

    return _explained(fetch, "data.source", repo_id, "dataset", by_hand)


def _explained(fetch: Callable[[Any], str], key: str, repo_id: str, kind: str, by_hand: Path) -> str:
    import httpx
    from huggingface_hub import HfApi, errors

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    page = f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    copy = (
        f"Or copy it yourself: on a machine with access 'hf download {repo_id} --repo-type {kind} --local-dir DIR', "
        f"then move DIR onto the cluster and set {key} to its absolute path (not {by_hand}, which llm-bridge makes)."
    )
    try:
        return fetch(HfApi())
    except errors.GatedRepoError as error:
        raise JobError(
            f"{key}: {repo_id} is gated and the token may not read it. Accept its terms on {page} with the account "
            f"that the token belongs to. {copy}",
            kind="token_refused",
        ) from error
    except errors.RepositoryNotFoundError as error:
        # The Hub answers the same for a repository that does not exist and for one that is hidden.
        raise JobError(
            f"{key}: {endpoint} knows no {kind} {repo_id}, or the token may not see it ({_token()}). Check the name "
            f"on {page}, and the Hub connection's password. {copy}",
            kind="token_refused",
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise JobError(
                f"{key}: {endpoint} refused the token for {repo_id} (HTTP {status}; {_token()}). Put a valid token "
                f"into the Airflow connection that hub.conn_id of the cluster's file names. {copy}",
                kind="token_refused",
            ) from error
        raise JobError(
            f"{key}: {endpoint} answered HTTP {status} for {repo_id}: {error}", retry=True, kind="hub_away"
        ) from error
    except (
        httpx.TransportError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        OSError,
    ) as error:
        if _is_disk(error):
            raise JobError(f"{key}: cannot write below {by_hand.parent}: {error}") from error
        raise JobError(
            f"{key}: {repo_id} must be fetched, but {endpoint} cannot be reached from {os.uname().nodename} "
            f"({type(error).__name__}: {error}). If compute nodes have no internet, use a partition that has it for "
            f"the prepare stage (stages.prepare.partition of the cluster's file). {copy}",
            retry=True,
            kind="hub_away",
        ) from error


def _is_disk(error: BaseException) -> bool:
    # requests' and httpx' errors are OSErrors in part; those of the file system carry a file's name.
    return isinstance(error, OSError) and getattr(error, "filename", None) is not None


def _token() -> str:
    token: Optional[str] = os.environ.get("HF_TOKEN")
    return "HF_TOKEN is set" if token else "HF_TOKEN is not set"
