"""What llm-bridge asks of Slurm, as commands on the login node."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.errors import ConfigError
from llm_bridge.config.load import include_dir
from llm_bridge.slurm import fingerprint, script
from llm_bridge.slurm.info import (
    SACCT_FIELDS,
    SQUEUE_FORMAT,
    JobInfo,
    by_own_word,
    from_outcome,
    from_sacct,
    from_squeue,
)
from llm_bridge.slurm.job import SlurmJob
from llm_bridge.slurm.states import Phase
from llm_bridge.transport import Completed, Session, Transport, checked

# What Slurm's commands say when slurmctld is away or overloaded (slurm_errno.c). No verdict on any job.
_AWAY = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "temporarily unable",
    "Transport endpoint is not connected",
    "Connection refused",
    "Connection timed out",
    "(rpc_budget) is used up",  # include/login/rpc.py
)

# squeue and scontrol take about 10 s to fail while slurmctld is away.
SLURM_SECONDS = 60
# A helper may run several, and wait for the site's ration (include/login/rpc.py: PATIENCE).
HELPER_SECONDS = 240


class SlurmClient:
    """Slurm commands over one :class:`Transport`. Holds no state."""

    def __init__(self, cluster: Cluster, transport: Transport) -> None:
        self.cluster = cluster
        self.transport = transport

    async def submit(
        self,
        job: SlurmJob,
        directory: str,
        key: str,
        owner: dict[str, Any],
        secrets: dict[str, str],
        *,
        fresh: bool = False,
    ) -> dict[str, Any]:
        """Submit ``job`` once; the same ``directory`` and ``key`` always mean the same job.

        :param directory: the attempt's directory, absolute.
        :param owner: whose job it is, kept beside it (``owner.json``): dag_id, run_id, task_id, map_index.
        :param secrets: file name -> text; they travel on standard input into 0600 files.
        :param fresh: no retry, see :meth:`Result.request`.
        :returns: what ``include/login/submit.py`` answers: ``how`` is "submitted", "found" (it was there already),
            "done" (the stage's result is there, nothing was submitted) or "closed" (a later try has given this attempt
            up).
        :raises ConfigError: Slurm refuses the job (partition, account, size ...).
        :raises SlurmUnreachable: slurmctld does not answer.
        """
        request = {
            "directory": directory,
            "key": key,
            "owner": owner,
            "files": script.files(job, self.cluster, directory),
            "secrets": secrets,
            "stage": fingerprint.request(job, fresh=fresh),
            "budget": self._budget(),
        }
        answer = await self.ask("submit", request, timeout=HELPER_SECONDS)
        if "error" in answer:
            raise _refusal(job, answer["error"])
        return answer

    async def place(
        self, directory: str, texts: dict[str, str], stage: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write files below ``directory`` on the cluster, 0600 and each in one step.

        :param texts: relative path -> content.
        :param stage: the attempt in ``directory`` begins to make this stage's result (:meth:`Result.request`).
        :returns: with ``stage``, ``{"goes_on", "aside"}`` of ``include/login/done.py``.
        """
        request = {"directory": directory, "key": None, "files": texts, "secrets": {}, "stage": stage}
        return await self.ask("submit", request)

    async def done(self, stage_directory: str, stage: dict[str, Any]) -> dict[str, Any] | None:
        """A stage's result, if it is there and was made as this one would be: ``{"job_id", "directory", "started",
        "outcome", "result"}`` of the attempt that made it.

        :param stage: :meth:`Result.request`.
        """
        return (await self.ask("done", {"directory": stage_directory, "stage": stage}))["done"]

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
        done = await self.slurm(["sbatch", "--test-only", *options], stdin="#!/bin/sh\ntrue\n")
        if done.code:
            raise _refusal(job, done.stderr.strip())
        return done.stderr.strip()

    async def find(self, job_ids: Iterable[str], *, reserve: int = 0) -> dict[str, JobInfo]:
        """What Slurm knows of these jobs: one squeue for all of them, and one sacct for those that it has forgotten.

        A job that is not in the answer is known to neither, which says nothing about how it ended.

        :param reserve: calls of the site's ration (``rpc_budget``) to leave to others.
        :raises SlurmUnreachable: slurmctld does not answer.
        :raises RationUsedUp: the ration does not allow it now.
        """
        ids = list(job_ids)
        if not ids:
            return {}
        done = await self.slurm(
            ["squeue", "-h", "-t", "all", "-O", SQUEUE_FORMAT, "-j", ",".join(ids)], reserve=reserve
        )
        # With a single id, a job that is already forgotten is an error instead of an empty answer.
        if done.code and "Invalid job id" not in done.stderr:
            raise _away("squeue", self.cluster, done)
        found = dict(from_squeue(line) for line in done.stdout.splitlines() if line.count("|") >= 8)
        if missing := [job_id for job_id in ids if job_id not in found]:
            argv = [
                "sacct",
                "-X",
                "-n",
                "-P",
                "-S",
                "now-30days",
                "-o",
                SACCT_FIELDS,
                "-j",
                ",".join(missing),
            ]
            done = await self.slurm(argv, reserve=reserve)
            # No accounting, or none just now: then Slurm does not know the job, and that is no verdict.
            rows = done.stdout.splitlines() if done.code == 0 else []
            past = dict(from_sacct(row) for row in rows if row.count("|") >= 7)
            # What accounting believes to run and slurmctld does not know was lost in a crash of slurmctld.
            found |= {job_id: info for job_id, info in past.items() if info.phase is Phase.ENDED}
        return found

    async def look_up(self, job_id: str, directory: str) -> JobInfo | None:
        """What is known of one job: from Slurm or, where that has forgotten it, from what the job left as it ended.

        :param directory: its attempt's directory.
        """
        info = (await self.find([job_id])).get(job_id)
        known = info if info and info.is_of(directory) else None
        if known and (known.phase is not Phase.ENDED or known.meaning.good):
            return known
        done = await self.transport.run(["cat", "--", f"{directory}/outcome.json"])
        outcome = json.loads(done.stdout) if done.code == 0 else None
        if known:
            return by_own_word(known, outcome)
        return from_outcome(job_id, outcome) if outcome else None

    async def cancel(self, job_ids: Iterable[str]) -> None:
        """``scancel``: SIGTERM to the job's steps, and SIGKILL after the site's KillWait (slurm.conf(5)).

        A job that has ended already is no error.

        :raises SlurmUnreachable: slurmctld does not answer.
        """
        ids = list(job_ids)
        if ids:
            done = await self.slurm(["scancel", *ids])
            if done.code and "Invalid job id" not in done.stderr:
                raise _away("scancel", self.cluster, done)

    async def release(self, job_id: str) -> bool:
        """Let a job that Slurm holds be scheduled; whether Slurm does so.

        :raises RationUsedUp: the site's ration does not allow it now.
        """
        return (await self.slurm(["scontrol", "release", job_id], reserve=1)).code == 0

    async def ping(self) -> bool:
        """Whether slurmctld answers."""
        done = await self.slurm(["scontrol", "ping"])
        return done.code == 0 and " UP" in done.stdout

    async def attempts(self, stage_directory: str, *, close: bool = False) -> list[dict[str, str]]:
        """``{"job_id", "directory"}`` of every submission of a stage, oldest first.

        :param close: none of these attempts can get a job afterwards.
        :raises SlurmUnreachable: slurmctld must be asked for an attempt's job, and does not answer.
        """
        request = {"directory": stage_directory, "close": close, "budget": self._budget()}
        answer = await self.ask("attempts", request, timeout=HELPER_SECONDS)
        if "error" in answer:
            raise SlurmUnreachable(f"slurmctld of cluster {self.cluster.name!r}: {answer['error']}")
        return answer["jobs"]

    async def ours(self, note: Sequence[str] = ()) -> list[dict[str, Any]]:
        """llm-bridge's jobs that wait or run: ``{"job_id", "state", "directory", "owner", "noted"}``.

        :param note: attempt directories to mark as seen without a run.
        :raises SlurmUnreachable: slurmctld does not answer.
        """
        request = {"workspace": self.cluster.workspace, "note": list(note), "budget": self._budget()}
        answer = await self.ask("ours", request, timeout=HELPER_SECONDS)
        if "error" in answer:
            raise SlurmUnreachable(f"slurmctld of cluster {self.cluster.name!r}: {answer['error']}")
        return answer["jobs"]

    async def slurm(self, argv: list[str], *, stdin: str = "", reserve: int = 0) -> Completed:
        """Run one Slurm command, within the site's ration.

        :raises RationUsedUp: the ration does not allow it now; only with ``reserve``.
        """
        budget = self._budget()
        if budget is None:
            return await self.transport.run(argv, stdin=stdin.encode(), timeout=SLURM_SECONDS)
        request = {"argv": argv, "stdin": stdin, "budget": budget, "reserve": reserve}
        answer = await self.ask("rpc", request, timeout=HELPER_SECONDS)
        if "wait" in answer:
            raise RationUsedUp(answer["wait"])
        return Completed(**answer)

    def watch(self) -> AbstractAsyncContextManager[Session]:
        """A session of ``include/login/watch.py``."""
        return _watching(self)

    async def ask(self, helper: str, request: dict[str, Any], timeout: float = 60) -> Any:
        """Run ``include/login/HELPER.py`` on the login node with ``request``; returns its answer."""
        stdin = _first_line(helper, request)
        return json.loads(await checked(self.transport, self.helper_argv, stdin=stdin, timeout=timeout))

    @property
    def helper_argv(self) -> list[str]:
        """What runs a helper on the login node; which one, and its text, comes on standard input."""
        return [self.cluster.login_python, "-c", _source("boot")]

    def _budget(self) -> dict[str, Any] | None:
        ration = self.cluster.rpc_budget
        path = f"{self.cluster.workspace}/.llm-bridge/rpc_budget.json"
        return {"path": path, **ration.model_dump()} if ration else None


class SlurmUnreachable(ConnectionError):
    """slurmctld did not answer. Whether it took a job all the same is found out by the next try."""


class RationUsedUp(SlurmUnreachable):
    """The site's ration of Slurm commands allows none for ``seconds``."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the site's ration of Slurm commands (rpc_budget) is used up for {seconds:.0f} s")
        self.seconds = seconds


def _refusal(job: SlurmJob, said: str) -> Exception:
    if any(words in said for words in _AWAY):
        return SlurmUnreachable(f"slurmctld of cluster {job.cluster!r} does not answer: {said}")
    return ConfigError(
        f"Slurm on cluster {job.cluster!r} refuses the job {job.template or 'script'!r}: {said}. "
        f"Check include/clusters/{job.cluster}.yaml and the recipe's nodes and gpus_per_node; nothing was submitted."
    )


def _away(command: str, cluster: Cluster, done: Completed) -> SlurmUnreachable:
    said = done.stderr.strip() or done.stdout.strip()
    return SlurmUnreachable(
        f"`{command}` on cluster {cluster.name!r} ended with exit code {done.code}: {said[-500:]}"
    )


@asynccontextmanager
async def _watching(client: SlurmClient) -> AsyncIterator[Session]:
    async with client.transport.session(client.helper_argv) as session:
        session.tell(_first_line("watch", {}).rstrip())
        yield session


# The helpers that a helper imports, before itself.
_MODULES = {
    "rpc": ("rpc",),
    "done": ("files", "done"),
    "submit": ("rpc", "files", "done", "submit"),
    "attempts": ("rpc", "files", "done", "submit", "attempts"),
    "ours": ("rpc", "files", "ours"),
    "watch": ("watch",),
    "ray_http": ("files", "ray_http"),
    "check": ("check",),
}


def _first_line(helper: str, request: dict[str, Any]) -> bytes:
    """What ``include/login/boot.py`` reads."""
    modules = {name: _source(name) for name in _MODULES[helper]}
    return json.dumps({"modules": modules, "main": helper, "request": request}).encode() + b"\n"


@functools.cache  # asked for in the triggerer's loop
def _source(name: str) -> str:
    return (include_dir() / "login" / f"{name}.py").read_text(encoding="utf-8")
