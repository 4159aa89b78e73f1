"""Test Hub as a host of a local cluster, with the base model and data of the demo's recipe."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx

from testing import paths
from testing.airflow import LOOPBACK, free_port
from testing.hub_client import OWNER
from testing.local_cluster import LocalCluster
from testing.programs import run_program

HUB_PORT = 8090  # in the cluster: include/clusters/local.yaml has it in HF_ENDPOINT
MAKE_ASSETS = paths.ROOT / "testing" / "make_assets.py"


class Hub:
    """Test Hub, host `hub` of the local cluster.

    Args:
        cluster: Cluster of the host.
        directory: Directory of the repositories.
        tokens: User and role of each token; None generates one with role `write` for user `demo`.
    """

    def __init__(
        self, cluster: LocalCluster, directory: Path, tokens: dict[str, dict[str, Any]] | None = None
    ) -> None:
        self.cluster = cluster
        self.directory = directory
        self.tokens = directory / "tokens.json"
        self._users = tokens
        self.note = directory / "port"

    @property
    def token(self) -> str:
        """The first token."""
        if not self.tokens.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            writer = {f"hf_{secrets.token_hex(17)}": {"user": OWNER, "role": "write", "orgs": []}}
            with os.fdopen(os.open(self.tokens, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(self._users or writer, file)
        return str(next(iter(json.loads(self.tokens.read_text()))))

    @property
    def connection(self) -> str:
        """Airflow connection with the token, as JSON."""
        return json.dumps({"conn_type": "generic", "password": self.token})

    @property
    def port(self) -> int:
        """Port on this machine's loopback."""
        return int(self.note.read_text()) if self.note.exists() else HUB_PORT

    @property
    def url(self) -> str:
        """Address for this machine; jobs use http://hub:8090."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def client_cache(self) -> Path:
        """HF_HOME of clients on this machine."""
        return self.directory / "client"

    def answers(self) -> bool:
        """Return whether the Hub is up and accepts the token: another Hub on the same port does not."""
        if not self.tokens.exists():
            return False
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            return httpx.get(
                f"{self.url}/api/whoami-v2", headers=headers, timeout=5, trust_env=False
            ).is_success
        except httpx.HTTPError:
            return False

    def start(self) -> bool:
        """Start the Hub.

        Returns:
            False if it was already up.
        """
        if self.answers():
            return False
        self.cluster.stop_service("hub")
        token_file = self.tokens if self.token else None  # reading the token makes the file
        port = free_port(HUB_PORT)
        argv = [
            sys.executable,
            "-m",
            "testing.local_hub",
            "--root",
            str(self.directory / "repos"),
        ]
        argv += ["--host", "0.0.0.0", "--port", str(HUB_PORT), "--tokens", str(token_file)]
        env = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
        self.cluster.start_service("hub", listen_port=port, port=HUB_PORT, argv=argv, env=env)
        self.note.write_text(str(port))
        return True

    def client_environment(self, **more: str) -> dict[str, str]:
        """Return the environment of an unmodified client on this machine, without the user's own token and cache."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {
            **own,
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.client_cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": f"{LOOPBACK},localhost",
            **more,
        }


def make_assets(folder: Path, logs: Path) -> bool:
    """Make the base model and the data.

    Args:
        folder: Destination.
        logs: Folder for the program's log.

    Returns:
        False if they exist already, made by the same version of the program.
    """
    stamp = folder / "made-by"
    if stamp.exists() and stamp.read_text() == MAKE_ASSETS.read_text():
        return False
    shutil.rmtree(folder, ignore_errors=True)
    run_program([paths.cluster_python(), MAKE_ASSETS, "--out", folder], "make model and data", logs)
    stamp.write_text(MAKE_ASSETS.read_text())
    return True


def publish_assets(hub: Hub, folder: Path, logs: Path) -> None:
    """Upload model and data to the Hub with an unmodified client; arguments as for :func:`make_assets`."""
    argv: list[str | Path] = [sys.executable, "-m", "testing.hub_client", "upload", folder]
    run_program(argv, "upload model and data", logs, hub.client_environment())
