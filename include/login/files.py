"""Small files on the shared file system, which are whole or not there."""

import json
import os


def write(path, text, mode=0o600):
    """Create or replace a file in one step, never readable to others for a moment."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = path + ".tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def read(path):
    """A small file's text without the line end, or None."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read().strip()
    except FileNotFoundError:
        return None


def read_json(path):
    """What a JSON file holds; None if it is missing or was cut off."""
    try:
        return json.loads(read(path) or "null")
    except ValueError:
        return None
