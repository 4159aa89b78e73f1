"""Build the archive of programs that is sent with each attempt: ``node.pyz``, run as ``python node.pyz PROGRAM ...``.

A job runs the programs that it was submitted with, also after an upgrade of llm-bridge. The archive has the same
packages under the same names as the distribution (``llm_bridge.remote.node``), so imports are the same everywhere.
"""

from __future__ import annotations

import functools
import io
import zipfile
from importlib import resources
from importlib.resources.abc import Traversable

# Modules that the programs import besides ``llm_bridge.remote.node``.
SHARED = ("__init__.py", "version.py", "remote/__init__.py", "remote/attempt_dir.py", "remote/hub_status.py")
MAIN = "from llm_bridge.remote.node.__main__ import main\n\nmain()\n"
# Fixed modification time, the earliest that ZIP supports, so that the same sources give the same bytes.
EPOCH = (1980, 1, 1, 0, 0, 0)


@functools.cache
def build() -> bytes:
    """Return the archive, about 140 kB; the bytes are the same for the same sources."""
    package = resources.files("llm_bridge")
    texts = {"__main__.py": MAIN}
    texts |= {f"llm_bridge/{name}": package.joinpath(name).read_text(encoding="utf-8") for name in SHARED}
    texts |= _sources(package.joinpath("remote", "node"), "llm_bridge/remote/node")
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(texts):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), texts[name], zipfile.ZIP_DEFLATED)
    return target.getvalue()


def _sources(folder: Traversable, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            found |= _sources(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(".py"):
            found[f"{name}/{entry.name}"] = entry.read_text(encoding="utf-8")
    return found
