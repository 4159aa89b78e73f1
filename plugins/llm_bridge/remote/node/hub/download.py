"""Downloads from the Hub, with errors that state the next action. Requires huggingface_hub (tested: 1.33)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_bridge.remote import hub_status
from llm_bridge.remote.node.common.job_io import JobError

# The same weights in formats that training does not read. All other files are downloaded: those of tokenizers have many
# names.
OTHER_FORMATS = ["original/*", "onnx/*", "*/original/*", "*/onnx/*"]
OTHER_FORMATS += [
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.onnx",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.tflite",
    "*.nemo",
]


def download_model(repo_id: str, directory: Path, by_hand: Path) -> str:
    """Download a model, and continue an interrupted download.

    Args:
        repo_id: Repository on the Hub, ``OWNER/NAME``.
        directory: Directory for the files.
        by_hand: Directory that llm-bridge creates for the model; error messages contain it.

    Returns:
        The commit that was downloaded.

    Raises:
        JobError: The Hub is unreachable, refuses the token, or has no such repository.
    """

    def fetch(api: Any) -> str:
        info = api.model_info(repo_id)
        names = [file.rfilename for file in info.siblings or []]
        has_safetensors = any(name.endswith(".safetensors") and "/" not in name for name in names)
        api.snapshot_download(
            repo_id,
            revision=info.sha,
            local_dir=directory,
            ignore_patterns=[*OTHER_FORMATS, "*.bin" if has_safetensors else "*.safetensors"],
        )
        sha: str = info.sha
        return sha

    return _with_job_errors(fetch, "base_model", repo_id, "model", by_hand)


def download_data(
    repo_id: str,
    revision: str | None,
    choose: Callable[[Sequence[str], str], Sequence[str]],
    directory: Path,
    by_hand: Path,
) -> str:
    """Download files of a data set.

    Args:
        repo_id: Repository on the Hub, ``OWNER/NAME``.
        revision: Branch, tag or commit; None takes main.
        choose: Returns the files to download, given the names of all files and the text of the README.
        directory: Directory for the files.
        by_hand: As for :func:`download_model`.

    Returns:
        The commit that was downloaded.

    Raises:
        JobError: As for :func:`download_model`; or there is no such revision.
    """

    def fetch(api: Any) -> str:
        from huggingface_hub import errors

        try:
            info = api.dataset_info(repo_id, revision=revision)
        except errors.RevisionNotFoundError as error:
            raise JobError(
                f"data.source: {repo_id} on the Hub has no revision {revision}: set data.revision to a branch, a tag "
                "or a commit of it",
                kind="bad_config",
            ) from error
        names = [file.rfilename for file in info.siblings or []]
        download = {"repo_type": "dataset", "revision": info.sha, "local_dir": directory}
        readme = ""
        if "README.md" in names:
            readme = Path(api.hf_hub_download(repo_id, "README.md", **download)).read_text("utf-8", "replace")
        # Names may hold characters of patterns.
        patterns = [re.sub(r"([*?[])", r"[\1]", name) for name in choose(names, readme)]
        api.snapshot_download(repo_id, allow_patterns=patterns, **download)
        sha: str = info.sha
        return sha

    return _with_job_errors(fetch, "data.source", repo_id, "dataset", by_hand)


def _with_job_errors(fetch: Callable[[Any], str], key: str, repo_id: str, kind: str, by_hand: Path) -> str:
    """Return the commit that ``fetch`` downloads; its exceptions become a JobError with the next action.

    Args:
        fetch: Downloads with the given ``HfApi``.
        key: Key of the recipe that names the repository.
        repo_id: Repository on the Hub, ``OWNER/NAME``.
        kind: "model" or "dataset".
        by_hand: As for :func:`download_model`.
    """
    import httpx
    from huggingface_hub import HfApi, errors, get_token

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    page = f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    copy = (
        f"Or copy it by hand: on a machine with access run 'hf download {repo_id} --repo-type {kind} --local-dir DIR', "
        f"then move DIR onto the cluster and set {key} to its absolute path (not {by_hand}, which llm-bridge creates)."
    )
    token = get_token() or ""
    # An HTTP library would print a malformed header value, token included, in its own error message.
    if token and not re.fullmatch(r"[!-~]+", token):
        raise JobError(
            f"{key}: the Hub token of this job ({_token_state()}) has blanks or characters outside printable ASCII. "
            "Store only the token itself at its source: HF_TOKEN, or the file of `hf auth login`.",
            kind="token_refused",
        )
    try:
        return fetch(HfApi())
    except errors.GatedRepoError as error:
        raise JobError(
            f"{key}: {repo_id} is gated and the token may not read it. Accept its terms on {page} with the token's "
            f"account. {copy}",
            kind="token_refused",
        ) from error
    except errors.RepositoryNotFoundError as error:
        # The Hub answers the same for a repository that does not exist and for one that the token may not read.
        raise JobError(
            f"{key}: {endpoint} has no {kind} {repo_id}, or the token may not read it ({_token_state()}). Check the "
            f"name on {page}, and the Hub connection's password. {copy}",
            kind="token_refused",
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in hub_status.TOKEN_REFUSED:
            raise JobError(
                f"{key}: {endpoint} refused the token for {repo_id} (HTTP {status}; {_token_state()}). Store a valid "
                f"token in the Airflow connection hub.conn_id of the cluster file. {copy}",
                kind="token_refused",
            ) from error
        if status is not None and hub_status.is_final(status):
            raise JobError(
                f"{key}: {endpoint} refuses the request for {repo_id} (HTTP {status}), also if tried again: {error}",
                kind="bad_config",
            ) from error
        raise JobError(
            f"{key}: {endpoint} answered HTTP {status} for {repo_id}: {error}",
            retry=True,
            kind="hub_unavailable",
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
            f"{key}: {repo_id} must be downloaded, but {endpoint} cannot be reached from {os.uname().nodename} "
            f"({type(error).__name__}: {error}). If compute nodes have no internet, use a partition that has it for "
            f"the prepare stage (stages.prepare.partition of the cluster file). {copy}",
            retry=True,
            kind="hub_unavailable",
        ) from error


def _is_disk(error: BaseException) -> bool:
    # Some errors of requests and httpx are OSErrors; only those of the file system have a file name.
    return isinstance(error, OSError) and getattr(error, "filename", None) is not None


def _token_state() -> str:
    token: str | None = os.environ.get("HF_TOKEN")
    return "HF_TOKEN is set" if token else "HF_TOKEN is not set"
