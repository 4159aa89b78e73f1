"""Build the environment that a cluster file names: what to build, where, and the job or script that does it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import ConfigError
from llm_bridge.naming import job_key, slug
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm import batch_script
from llm_bridge.slurm.batch_script import AttemptFiles
from llm_bridge.slurm.client import SlurmClient
from llm_bridge.slurm.spec import ResolvedJob, SlurmJob

# Engine -> file of pins in llm_bridge/pins, which a wheel has, too.
PINS = {
    "cpu": "requirements-cluster.txt",
    "vllm": "requirements-cluster-vllm.txt",
    "sglang": "requirements-cluster-sglang.txt",
}
# With which the pins are tested.
PYTHON = "3.11"
# In place of a DAG's id: no DAG run owns these jobs, so reap_orphans leaves them alone.
OWNER = "install-environment"
# Digits of the hash in names and logs.
HASH_LENGTH = 12


def pins(engine: str) -> str:
    """Return the text of llm-bridge's own requirements file.

    Args:
        engine: Key of :data:`PINS`.
    """
    return resources.files("llm_bridge").joinpath("pins", PINS[engine]).read_text(encoding="utf-8")


@dataclass(frozen=True)
class EnvironmentBuild:
    """Build of the environment of one cluster file.

    Attributes:
        cluster: The cluster; its ``environment.venv``, or ``environment.container`` with apptainer, is what is built.
        requirements: Text of a requirements file.
        python: Version of Python, such as ``3.11``.
        without_isolation: Requirements to install after the others without build isolation (flash-attn).
        find_links: Folder of wheels on the cluster, in place of the package index.

    Raises:
        ConfigError: The cluster file names no place that can be built, or a value is wrong.
    """

    cluster: Cluster
    requirements: str
    python: str = PYTHON
    without_isolation: tuple[str, ...] = ()
    find_links: str | None = None

    def __post_init__(self) -> None:
        file, environment = f"include/clusters/{self.cluster.name}.yaml", self.cluster.environment
        if environment.conda:
            raise ConfigError(
                f"environment.conda in {file}: install-environment builds a venv or an apptainer image: set "
                "environment.venv instead, or build the conda environment yourself"
            )
        if not (environment.venv or environment.container):
            raise ConfigError(
                f"environment in {file}: set venv to the directory to build, on a file system that all nodes share, "
                f"such as {self.cluster.workspace}/environment"
            )
        image = environment.container or ""
        if image and (environment.container_runtime != "apptainer" or not re.fullmatch(r"/.+\.sif", image)):
            raise ConfigError(
                f"environment.container in {file}: only an apptainer image in an absolute path that ends in .sif can "
                f"be built (got {image!r} with container_runtime {environment.container_runtime}); or set "
                "environment.venv"
            )
        if not re.fullmatch(r"3\.[0-9]{1,2}", self.python):
            raise ConfigError(f"--python: must be a version such as {PYTHON} (got {self.python!r})")
        if self.find_links is not None and not self.find_links.startswith("/"):
            raise ConfigError(
                f"--find-links: must be an absolute path of a folder on the cluster (got {self.find_links!r})"
            )
        if self.find_links is not None and image:
            raise ConfigError(
                "--find-links: an image is built inside a container, which does not have that folder: set "
                f"environment.venv in {file}"
            )
        if not self.lines:
            raise ConfigError("--requirements: the file has no requirement")

    @property
    def lines(self) -> list[str]:
        """The requirements, without comments and blank lines."""
        found = (re.sub(r"(^|\s)#.*", "", line).strip() for line in self.requirements.splitlines())
        return [line for line in found if line]

    @property
    def hash(self) -> str:
        """Hash of the pins, and of all else that decides what is in the environment."""
        parts = [self.lines, self.python, list(self.without_isolation)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:HASH_LENGTH]

    @property
    def is_image(self) -> bool:
        """True for an apptainer image."""
        return bool(self.cluster.environment.container)

    @property
    def key(self) -> str:
        """Key and file that name the place."""
        name = "container" if self.is_image else "venv"
        return f"environment.{name} in include/clusters/{self.cluster.name}.yaml"

    @property
    def target(self) -> str:
        """Path in the cluster file: a link to :attr:`place`."""
        environment = self.cluster.environment
        return (environment.container or environment.venv or "").rstrip("/")

    @property
    def place(self) -> str:
        """Path of the environment itself."""
        path = PurePosixPath(self.target)
        if self.is_image:
            return str(path.with_name(f"{path.stem}-{self.hash}{path.suffix}"))
        return str(path.with_name(f"{path.name}-{self.hash}"))

    @property
    def record(self) -> str:
        """Path of the file that is written last: what has it is complete."""
        return attempt_dir.environment_record(self.place)

    @property
    def index_options(self) -> list[str]:
        """Options of uv and pip."""
        return ["--no-index", "--find-links", self.find_links] if self.find_links else []

    @property
    def directory(self) -> str:
        """Directory of the builds on the cluster, as of a stage."""
        return f"{self.cluster.workspace}/{OWNER}/{slug(self.target)}/build"

    @property
    def requirements_file(self) -> str:
        """Path of the requirements on the cluster; named after the hash, so that no build changes another one's."""
        return f"{self.directory}/requirements-{self.hash}.txt"

    @property
    def owner(self) -> dict[str, Any]:
        """Owner of the job, as in an attempt's OWNER file."""
        return {"dag_id": OWNER, "run_id": self.target, "task_id": "build", "map_index": -1}

    def script(self, directory: str | None = None) -> str:
        """Return the script that builds.

        Args:
            directory: Directory of the script on the login node; None in a Slurm job, whose batch script changes to it.
        """
        return batch_script.render_environment(build=self, directory=directory)

    def job(self) -> ResolvedJob:
        """Return the Slurm job that builds: one node without GPUs, as the stage ``prepare``."""
        # Modules apply; the environment itself does not exist yet.
        unset = self.cluster.environment.model_copy(update={"venv": None, "container": None})
        cluster = self.cluster.model_copy(update={"environment": unset})
        job = SlurmJob(
            cluster=cluster.name,
            stage="prepare",
            script=self.script(),
            settings={"hash": self.hash},
            directory=self.directory,
        )
        return job.resolve(cluster)

    def job_name(self, attempt: int) -> str:
        """Return the name of a submission in Slurm."""
        return job_key(OWNER, self.target, "install-environment", -1, attempt)

    async def send_requirements(self, client: SlurmClient) -> None:
        """Write the requirements file on the cluster."""
        text = "\n".join(self.lines) + "\n"
        name = PurePosixPath(self.requirements_file).name
        await client.put_files(self.directory, AttemptFiles({name: text}))

    async def is_current(self, client: SlurmClient) -> bool:
        """Return True if the cluster file's path leads to this environment, and it is complete."""
        done = await client.transport.run(["readlink", "-f", "--", self.target])
        real = done.stdout.strip()
        found = await client.read_json(attempt_dir.environment_record(real)) if real else None
        return isinstance(found, dict) and found.get("hash") == self.hash
