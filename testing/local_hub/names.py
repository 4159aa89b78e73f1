"""Checks for names that come from a client: repositories, branches, and paths of files in a repository."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import HubError

# Owner and name become folder names on the server's disk: neither separators nor dots at the ends.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_BRANCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
SHA1 = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")

KINDS = {"model": "models", "dataset": "datasets"}


@dataclass(frozen=True)
class RepoKey:
    """Key of a repository: kind is the plural as in URLs and folders (`models` or `datasets`)."""

    kind: str
    owner: str
    name: str

    @property
    def id(self) -> str:
        """Return ``OWNER/NAME``."""
        return f"{self.owner}/{self.name}"

    @property
    def url_path(self) -> str:
        """Path of the repository's page; models have no prefix, as on huggingface.co."""
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"


def repo_key(kind: str, owner: str, name: str) -> RepoKey:
    """Build a key from client input, or refuse it with the name of the invalid part."""
    if kind not in KINDS.values():
        raise HubError(400, f"repository type {kind!r} is not served here; use one of {', '.join(KINDS)}")
    for label, value in (("owner", owner), ("name", name)):
        if not _NAME.fullmatch(value) or "--" in value or ".." in value or value.endswith(".git"):
            raise HubError(
                400,
                f"repository {label} {value!r} is not allowed: use letters, digits, '-', '_', '.'; no '--', "
                "no '..', no '.' or '-' at either end, no '.git' at the end, at most 96 characters",
            )
    return RepoKey(kind, owner, name)


def check_branch(name: str) -> str:
    """Return a branch or tag name that is safe as a JSON key and cannot be mistaken for a commit."""
    if not _BRANCH.fullmatch(name) or ".." in name or SHA1.fullmatch(name) or name.startswith("refs/"):
        raise HubError(400, f"{name!r} is not allowed as a branch or tag name")
    return name


def check_file_path(path: str) -> str:
    """Refuse paths that would leave the folder into which a client downloads the repository.

    The server itself stores content under its hash, so a path never reaches its own disk.
    """
    parts = path.split("/")
    if (
        not path
        or len(path.encode()) > 1024
        or any(part in ("", ".", "..", ".git") for part in parts)
        or "\\" in path
        or any(ord(character) < 32 for character in path)
    ):
        raise HubError(
            400,
            f"file path {path!r} is not allowed: it must be relative, with '/' between its parts, without "
            "empty parts, '.', '..', '.git', backslashes or control characters",
        )
    return path
