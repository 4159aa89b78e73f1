"""Folder for files that processes of one host and user share, such as locks and sockets."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def path() -> Path:
    """Return the folder; make it if it is missing.

    Raises:
        OSError: It cannot be made, or others than this user may write to it.
    """
    folder = Path(tempfile.gettempdir()) / f"llm-bridge-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # a link of another user may lead to a folder of this one
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    if found.st_mode & 0o077:
        raise PermissionError(f"{folder} is open to other users: its mode must be 0700")
    return folder
