"""What llm-bridge asks of Slurm, as commands on the login node."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.errors import ConfigError
from llm_bridge.config.load import include_dir
from llm_bridge.slurm import script
from llm_bridge.slurm.job import SlurmJob
from llm_bridge.slurm.states import Phase, State, state_of
from llm_bridge.transport import CommandFailed, Transport, checked

# What Slurm's commands say when slurmctld is away or overloaded (slurm_errno.c). No verdict on any job.
_AWAY = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "temporarily unable",
    "Transport endpoint is not connected",
    "Connection refused",
    "Connection timed out",
)

# squeue and scontrol take about 10 s to fail while slurmctld is away.
SLURM_SECONDS = 60


@dataclass(frozen=True)
class JobInfo:
    """What Slurm says of one job. Times are epoch seconds; 0 where Slurm has none."""

    job_id: str
    state: str
    reason: str = ""
    nodes: str = ""
    exit_code: int = 0
    signal: int = 0
    submitted: float = 0
    started: float = 0
    ended: float = 0

    @property
    def meaning(self) -> State:
        return state_of(self.state)

    @property
    def phase(self) -> Phase:
        return self.meaning.phase

    @property
    def queue_seconds(self) -> float:
        return max(0.0, self.started - self.submitted) if self.started else 0.0

    @property
    def run_seconds(self) -> float:
        """0 while the job runs: Slurm then gives the time at which its limit would end it."""
        return max(0.0, self.ended - self.started) if self.started and self.phase is Phase.ENDED else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class News:
    """What one look at a job's files brought: new log bytes, the next offset, and small JSON files."""

    log: bytes
    offset: int
    size: int
    files: dict[str, Any] = field(default_factory=dict)


class SlurmClient:
    """Slurm commands over one :class:`Transport`. Holds no state."""

    def __init__(self, cluster: Cluster, transport: Transport) -> None:
        self.cluster = cluster
        self.transport = transport

    async def submit(
        self, job: SlurmJob, directory: str, key: str, secrets: dict[str, str]
    ) -> tuple[str, bool]:
        """Submit ``job`` once; the same ``directory`` and ``key`` always mean the same job.

        :param directory: the attempt's directory, absolute.
        :param secrets: file name -> text; they travel on standard input into 0600 files.
        :returns: the job id, and whether this call submitted it (False: it was there already).
        :raises ConfigError: Slurm refuses the job (partition, account, size ...).
        :raises SlurmUnreachable: slurmctld does not answer.
        """
        request = {
            "directory": directory,
            "key": key,
            "files": script.files(job, self.cluster, directory),
            "secrets": secrets,
        }
        answer = await self.ask("submit.py", request, timeout=120)
        if "error" in answer:
            raise _refusal(job, answer["error"])
        return answer["job_id"], answer["how"] == "submitted"

    async def place(self, directory: str, texts: dict[str, str]) -> None:
        """Write files below ``directory`` on the cluster, 0600 and each in one step.

        :param texts: relative path -> content.
        """
        await self.ask("submit.py", {"directory": directory, "key": None, "files": texts, "secrets": {}})

    async def read(self, path: str) -> str:
        """A file on the cluster.

        :raises CommandFailed: it is not there, or may not be read.
        """
        return await checked(self.transport, ["cat", "--", path])

    async def test_only(self, job: SlurmJob) -> str:
        """Ask Slurm whether ``job`` could ever run, without submitting it; returns Slurm's estimate.

        :raises ConfigError: it could not.
        :raises SlurmUnreachable: slurmctld does not answer.
        """
        options = [
            f"--{name}" if value is None else f"--{name}={value}"
            for name, value in job.directives(self.cluster)
        ]
        argv = ["sbatch", "--test-only", *options]
        done = await self.transport.run(argv, stdin=b"#!/bin/sh\ntrue\n", timeout=SLURM_SECONDS)
        if done.code:
            raise _refusal(job, done.stderr.strip())
        return done.stderr.strip()

    async def states(self, job_ids: Iterable[str]) -> dict[str, JobInfo]:
        """State, reason and nodes of the jobs that slurmctld still knows, by one squeue for all of them."""
        ids = ",".join(job_ids)
        argv = ["squeue", "-h", "-t", "all", "-o", "%i|%T|%r|%N", "-j", ids]
        done = await self.transport.run(argv, timeout=SLURM_SECONDS)
        # With a single id, a job that is already forgotten is an error instead of an empty answer.
        if done.code and "Invalid job id" not in done.stderr:
            raise CommandFailed(argv, done)
        rows = (line.split("|") for line in done.stdout.splitlines() if line.count("|") == 3)
        return {
            i: JobInfo(i, state, reason="" if why == "None" else why, nodes=nodes)
            for i, state, why, nodes in rows
        }

    async def details(self, job_id: str) -> JobInfo | None:
        """Everything about one job, from slurmctld and, when that has forgotten it, from accounting.

        None when neither knows it; that says nothing about how it ended.
        """
        done = await self.transport.run(["scontrol", "-o", "show", "job", job_id], timeout=SLURM_SECONDS)
        if done.code == 0:
            return _from_scontrol(done.stdout)
        if "Invalid job id" not in done.stderr:
            raise CommandFailed(["scontrol", "show", "job"], done)
        done = await self.transport.run(
            ["sacct", "-X", "-n", "-P", "-S", "now-30days", "-o", _SACCT_FIELDS, "-j", job_id],
            timeout=SLURM_SECONDS,
        )
        rows = done.stdout.splitlines()
        return _from_sacct(rows[-1]) if done.code == 0 and rows else None

    async def cancel(self, job_ids: Iterable[str]) -> None:
        """``scancel``; a job that has ended already is no error."""
        ids = list(job_ids)
        if ids:
            done = await self.transport.run(["scancel", *ids], timeout=SLURM_SECONDS)
            if done.code and "Invalid job id" not in done.stderr:
                raise CommandFailed(["scancel"], done)

    async def attempts(self, stage_directory: str) -> list[dict[str, str]]:
        """``{"job_id", "directory"}`` of every submission of a stage, oldest first."""
        return (await self.ask("attempts.py", {"directory": stage_directory}))["jobs"]

    async def watch(self, jobs: dict[str, dict[str, Any]], max_bytes: int) -> dict[str, News]:
        """New log bytes and small files of many jobs, by one command that asks nothing of slurmctld.

        :param jobs: job id -> ``{"directory", "offset", "files"}``.
        :param max_bytes: at most so many log bytes of each job.
        """
        answer = await self.ask("watch.py", {"jobs": jobs, "max_bytes": max_bytes})
        return {
            job_id: News(
                log=base64.b64decode(seen["log"]),
                offset=seen["offset"],
                size=seen["size"],
                files=seen["files"],
            )
            for job_id, seen in answer["jobs"].items()
        }

    async def ask(self, helper: str, request: dict[str, Any], timeout: float = 60) -> Any:
        """Run ``include/login/HELPER`` on the login node with ``request`` as JSON; returns its JSON answer."""
        argv = [self.cluster.login_python, "-c", _program(include_dir() / "login" / helper)]
        output = await checked(self.transport, argv, stdin=json.dumps(request).encode(), timeout=timeout)
        return json.loads(output)


class SlurmUnreachable(ConnectionError):
    """slurmctld did not take a job. Whether it knows the job all the same is found out by the next try."""


def _refusal(job: SlurmJob, said: str) -> Exception:
    if any(words in said for words in _AWAY):
        return SlurmUnreachable(
            f"slurmctld of cluster {job.cluster!r} does not answer; a retry looks again: {said}"
        )
    return ConfigError(
        f"Slurm on cluster {job.cluster!r} refuses the job {job.template or 'script'!r}: {said}. "
        f"Check include/clusters/{job.cluster}.yaml and the recipe's nodes and gpus_per_node; nothing was submitted."
    )


@functools.cache  # asked for at every tick, in the triggerer's loop
def _program(path: Path) -> str:
    return path.read_text(encoding="utf-8")


_SACCT_FIELDS = "JobIDRaw,State,Reason,NodeList,ExitCode,Submit,Start,End"


def _from_sacct(row: str) -> JobInfo:
    job_id, state, reason, nodes, code, submitted, started, ended = row.split("|")
    exit_code, signal = (int(part) for part in code.split(":"))
    return JobInfo(
        job_id, state, "" if reason == "None" else reason, nodes, exit_code, signal,
        _epoch(submitted), _epoch(started), _epoch(ended),
    )  # fmt: skip


def _from_scontrol(text: str) -> JobInfo:
    words = dict(word.split("=", 1) for word in text.split() if "=" in word)
    exit_code, signal = (int(part) for part in words.get("ExitCode", "0:0").split(":"))
    nodes = words.get("NodeList", "")
    return JobInfo(
        words["JobId"],
        words["JobState"],
        "" if words.get("Reason") == "None" else words.get("Reason", ""),
        "" if nodes == "(null)" else nodes,
        exit_code,
        signal,
        _epoch(words.get("SubmitTime", "")),
        _epoch(words.get("StartTime", "")),
        _epoch(words.get("EndTime", "")),
    )


def _epoch(text: str) -> float:
    """Slurm prints the login node's local time without a zone; only differences of two are ever used."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
