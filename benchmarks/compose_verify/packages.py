"""Sources of pip's packages during the builds: the same as on this machine.

`pip config list` has mirrors, folders and certificates. A build has neither this machine's files nor its loopback, so
folders are served over HTTP, and configuration and certificate are build secrets, which are not stored in images.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from benchmarks.compose_verify.command import output

# Options for the sources of packages; other options (constraints, cache) are not used in the builds.
PLAIN = ("index-url", "timeout", "trusted-host")
PLACES = ("extra-index-url", "find-links")
CERTIFICATE = "/run/secrets/pip_ca"
# No file can exist there.
NOWHERE = "/dev/null/nowhere"
# One service of each image that pip is used in.
BUILT_BY = ("migrate", "ctl")


def pip_options() -> dict[str, str]:
    """Return pip's options on this machine; the environment overrides files."""
    found = {}
    for line in output([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        if match := re.match(r"(?:[\w-]+|:env:)\.([\w-]+)='(.*)'$", line):
            found[match[1]] = match[2].replace("\\n", " ")
    return found


class Folders:
    """HTTP server of some folders on this machine's loopback."""

    def __init__(self) -> None:
        self.places: list[Path] = []
        folders = self

        class Handler(SimpleHTTPRequestHandler):
            def translate_path(self, path: str) -> str:
                number, _, rest = unquote(urlsplit(path).path).lstrip("/").partition("/")
                if not number.isdigit() or int(number) >= len(folders.places):
                    return NOWHERE
                root = folders.places[int(number)]
                wanted = (root / rest).resolve()
                return str(wanted) if wanted.is_relative_to(root) else NOWHERE

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=NOWHERE))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, place: str, index: bool) -> str:
        """Return the HTTP address of a folder given as path or file: URL; other addresses stay unchanged.

        Args:
            place: Path or URL of pip's configuration.
            index: True for a package index, whose pages may link to files beside it.
        """
        if "://" in place and not place.startswith("file:"):
            return place
        folder = Path(unquote(urlsplit(place).path)).resolve()
        root = folder.parent if index else folder
        if root not in self.places:
            self.places.append(root)
        inner = f"{folder.name}/" if index else ""
        return f"http://127.0.0.1:{self.server.server_address[1]}/{self.places.index(root)}/{inner}"


@contextlib.contextmanager
def build_settings(folder: Path) -> Iterator[Path | None]:
    """Write a Compose file for the build, valid within the context; None if pip has no special options.

    Args:
        folder: Folder of the file.
    """
    options = pip_options()
    folders = Folders()
    lines = [f"{name} = {options[name]}" for name in PLAIN if name in options]
    for name in PLACES:
        if name in options:
            places = [folders.url(place, index="index" in name) for place in options[name].split()]
            lines.append("\n    ".join([f"{name} =", *places]))
    secrets: dict[str, dict[str, str]] = {}
    if "cert" in options:
        lines.append(f"cert = {CERTIFICATE}")
        secrets["pip_ca"] = {"file": options["cert"]}
    try:
        if not lines:
            yield None
            return
        configuration = folder / "pip.conf"
        configuration.touch(mode=0o600)  # an index's address may have a password in it
        configuration.write_text("[global]\n" + "\n".join(lines) + "\n")
        secrets["pip_conf"] = {"file": str(configuration)}
        build: dict[str, Any] = {"secrets": sorted(secrets)}
        if folders.places:
            build["network"] = "host"
        path = folder / "build.yaml"
        path.write_text(
            yaml.safe_dump({"services": {name: {"build": build} for name in BUILT_BY}, "secrets": secrets})
        )
        yield path
    finally:
        folders.server.shutdown()
