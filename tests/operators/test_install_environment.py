"""Real builds by ``install-environment``, from wheels in a folder: the cluster's hosts have no network.

apptainer cannot run here; tests/unit/slurm/test_environment_build.py runs that part with a stand-in.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.messages import CheckAnswer, CheckRequest
from llm_bridge.slurm.client import open_client
from testing.paths import PLUGINS

# Its build takes longer than any test.
SLOW_SETUP = "import time\nfrom setuptools import setup\ntime.sleep(1800)\nsetup(name='slow', version='1')\n"


@dataclass(frozen=True)
class Site:
    """A cluster file whose environment does not exist yet, and a folder of wheels on the cluster."""

    name: str
    environment: Path
    wheels: Path
    folder: Path

    def requirements(self, text: str) -> str:
        path = self.folder / f"{text.replace('=', '-')}.txt"
        path.write_text(f"{text}  # a pin\n")
        return str(path)

    def start(self, text: str, *options: str) -> subprocess.Popen[str]:
        """Start the command as a user does."""
        arguments = ["--requirements", self.requirements(text), "--find-links", str(self.wheels), *options]
        return subprocess.Popen(
            [sys.executable, "-m", "llm_bridge", "install-environment", self.name, *arguments],
            env={**os.environ, "PYTHONPATH": str(PLUGINS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Tests that run in the background of a shell ignore Ctrl-C, and would pass that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def run(self, text: str, *options: str) -> tuple[int, str]:
        """Run the command; return its exit code and output."""
        process = self.start(text, *options)
        printed, _ = process.communicate(timeout=900)
        return process.returncode, printed


@pytest.fixture(scope="module")
def built(described: Any, slurm: Any, tmp_path_factory: pytest.TempPathFactory) -> Site:
    environment = Path(described.workspace) / "environments" / "llm"
    name = described.variant("installed")
    described.write_cluster(name, described.values | {"environment": {"venv": str(environment)}})
    wheels = Path(described.workspace) / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        texts = {"METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
                 "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n", "RECORD": ""}  # fmt: skip
        wheel.writestr("tiny.py", "")
        for file, text in texts.items():
            wheel.writestr(f"tiny-1.0.dist-info/{file}", text)
    with tarfile.open(wheels / "slow-1.tar.gz", "w:gz") as source:
        for file, text in {
            "setup.py": SLOW_SETUP,
            "PKG-INFO": "Metadata-Version: 2.1\nName: slow\nVersion: 1\n",
        }.items():
            entry = tarfile.TarInfo(f"slow-1/{file}")
            entry.size = len(text)
            source.addfile(entry, io.BytesIO(text.encode()))
    return Site(name, environment, wheels, tmp_path_factory.mktemp("requirements"))


def test_a_job_builds_the_environment_once_and_a_run_names_its_hash(
    built: Site, described: Any, jobs: Any
) -> None:
    code, printed = built.run("tiny==1.0")
    assert code == 0, printed
    assert "submitted Slurm job" in printed and "Successfully installed tiny-1.0" in printed
    place = built.environment.resolve()
    digest = json.loads((place / attempt_dir.ENVIRONMENT).read_text())["hash"]
    assert place.name == f"llm-{digest}" and f"is environment {digest}" in printed
    described.run("n2", str(built.environment / "bin" / "python"), "-c", "import tiny", user="svc")
    assert len(jobs("install-environment")) == 1
    code, printed = built.run("tiny==1.0")
    assert code == 0 and "nothing to do" in printed and len(jobs("install-environment")) == 1

    async def check() -> CheckAnswer:
        async with open_client(built.name) as client:
            request = CheckRequest(str(described.workspace), {}, environment=str(built.environment))
            answer: CheckAnswer = await client.call_helper("check_site", request, CheckAnswer)
            return answer

    assert any(f"environment {digest}: " in finding.detail for finding in asyncio.run(check()).findings)


def test_ctrl_c_cancels_the_build_which_leaves_nothing_and_no_other_build_can_start_meanwhile(
    built: Site, jobs: Any, slurm: Any
) -> None:
    before = os.readlink(built.environment)
    process = built.start("tiny==1.0", "--no-build-isolation", "slow==1")
    printed = ""
    while "slow-1.tar.gz" not in printed:
        line = process.stdout.readline()  # type: ignore[union-attr]
        assert line, printed
        printed += line
    [*_, job] = sorted(jobs("install-environment"), key=int)
    code, refused = built.run("tiny==1")
    assert code == 1 and f"Slurm job {job} builds environment" in refused
    # On the login node, the lock in the place itself keeps it out.
    code, refused = built.run("tiny==1", "--on-login-node")
    assert code == 1 and f"another build holds {built.environment}.lock" in refused
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=600)
    assert process.returncode == 130 and f"cancelled Slurm job {job}" in rest
    done = slurm.run("login", ["squeue", "-h", "-j", job, "-o", "%T"], user="svc")
    assert done.stdout.strip() in ("", "CANCELLED")
    # The environment of before is in use, and what was begun is not complete.
    assert os.readlink(built.environment) == before
    assert len(list(built.environment.parent.glob(f"llm-*/{attempt_dir.ENVIRONMENT}"))) == 1


def test_a_build_on_the_login_node_that_fails_names_the_cause(built: Site) -> None:
    code, printed = built.run("absent==1", "--on-login-node")
    assert code == 1 and "No matching distribution found for absent==1" in printed
    assert "error: the build on login ended with exit code 1: ERROR: No matching distribution" in printed
