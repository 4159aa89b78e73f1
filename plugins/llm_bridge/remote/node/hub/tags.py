"""Tags of a repository on the Hub, which name the commits of published models."""

from __future__ import annotations

import re
from typing import Any

# Other tags that begin so are a person's.
NIGHTLY = re.compile(r"nightly-\d{4}-\d{2}-\d{2}")
LATEST = "latest-good"


def move_tags(
    api: Any, repo_id: str, commit: str, tags: list[str], keep_published: int | None
) -> tuple[list[str], list[str]]:
    """Let tags point to a commit, and remove those of old nightly models.

    ``latest-good`` stays where it is if the model is that of an earlier night, trained again, than another one's.

    Args:
        api: An ``HfApi`` with the token.
        repo_id: Repository on the Hub, ``OWNER/NAME``.
        commit: The commit.
        tags: Names of the tags.
        keep_published: Number of newest nightly tags to keep; None for all.

    Returns:
        The tags that point to the commit now, and those that were removed.
    """
    present = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
    nightly = sorted((tag for tag in {*present, *tags} if NIGHTLY.fullmatch(tag)), reverse=True)
    own = [tag for tag in tags if NIGHTLY.fullmatch(tag)]
    if own and own[0] != nightly[0]:
        tags = [tag for tag in tags if tag != LATEST]
    for tag in tags:
        if present.get(tag) == commit:
            continue
        if tag in present:  # the Hub cannot move a tag
            api.delete_tag(repo_id, tag=tag)
        api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True)
    old = nightly[keep_published:] if keep_published else []
    for tag in old:
        api.delete_tag(repo_id, tag=tag)
    return [tag for tag in tags if tag not in old], old
