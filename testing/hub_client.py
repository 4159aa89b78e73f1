"""Uploads and downloads of an unmodified Hub client.

It runs in its own process, because huggingface_hub reads its environment (HF_ENDPOINT, HF_TOKEN, HF_HOME) when it
is imported.

    python -m testing.hub_client upload ASSETS_DIR
    python -m testing.hub_client verify REPO_ID REVISION DOWNLOAD_DIR
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

OWNER = "demo"


def upload(assets: Path) -> dict[str, str]:
    """Upload the base model and the data set under the names in the recipe.

    Returns:
        The commit of each repository.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    commits = {}
    for name, kind in (("tiny-llama", "model"), ("gsm8k-tiny", "dataset")):
        repo_id = f"{OWNER}/{name}"
        api.create_repo(repo_id, repo_type=kind, exist_ok=True)
        api.upload_folder(repo_id=repo_id, repo_type=kind, folder_path=assets / name)
        commits[repo_id] = str(api.repo_info(repo_id, repo_type=kind).sha)
    return commits


def verify(repo_id: str, revision: str, target: Path) -> list[dict[str, Any]]:
    """Download a model and compare every file with the Hub's listing.

    Returns:
        `{"path", "size", "sha256", "matches"}` of each file that the Hub lists.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    snapshot_download(repo_id, revision=revision, local_dir=target)
    found = []
    for entry in HfApi().list_repo_tree(repo_id, revision=revision, recursive=True):
        if not isinstance(entry, RepoFile):
            continue
        content = (target / entry.path).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        # The Hub lists the SHA-256 of large files, and git's blob id of small ones.
        matches = entry.lfs.sha256 == sha256 if entry.lfs else entry.blob_id == git_blob_id(content)
        found.append({"path": entry.path, "size": len(content), "sha256": sha256, "matches": matches})
    return found


def git_blob_id(content: bytes) -> str:
    """Return the SHA-1 under which git stores a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def main(arguments: list[str]) -> None:
    """Run one command and print its result as JSON."""
    command, *rest = arguments
    result: Any = upload(Path(rest[0])) if command == "upload" else verify(rest[0], rest[1], Path(rest[2]))
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
