"""Run Slurm commands and llm-bridge's helpers on the login node."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.loader import load_cluster
from llm_bridge.exceptions import (
    ConfigError,
    EarlierAttemptRuns,
    JobRefused,
    NotAcceptedYet,
    RateLimitExceeded,
    SlurmUnavailable,
    SubmissionUnread,
    WorkspaceNotWritable,
)
from llm_bridge.remote import attempt_dir, helpers, messages
from llm_bridge.remote.attempt_dir import Outcome, Started
from llm_bridge.remote.helper_calls import Calls
from llm_bridge.remote.messages import (
    ActiveAnswer,
    ActiveJob,
    ActiveRequest,
    AttemptJob,
    AttemptsAnswer,
    AttemptsRequest,
    CommandAnswer,
    CommandRequest,
    Finding,
    FoundResult,
    RateBudget,
    ResultAnswer,
    ResultRequest,
    StageRequest,
    SubmitAnswer,
    SubmitRequest,
)
from llm_bridge.remote.shared_transport import connect
from llm_bridge.remote.transport import CommandFailed, Completed, NotStarted, Session, Transport, checked
from llm_bridge.slurm import (
    accounting,
    batch_script,
    capacity,
    fingerprint,
    refusals,
    site_limits,
    site_names,
)
from llm_bridge.slurm.accounting import Accounting
from llm_bridge.slurm.batch_script import AttemptFiles
from llm_bridge.slurm.capacity import TooLarge
from llm_bridge.slurm.refusals import Verdict
from llm_bridge.slurm.site_names import WrongNames
from llm_bridge.slurm.spec import ResolvedJob
from llm_bridge.slurm.status import (
    SQUEUE_FORMAT,
    UNLISTED,
    JobInfo,
    Phase,
    from_outcome,
    from_squeue,
    is_job_id,
    prefer_job_outcome,
)
from llm_bridge.version import VERSION

log = logging.getLogger(__name__)

# slurmctld's own error; squeue's error for text that is no job id at all begins "Invalid job id: ".
_NO_SUCH_JOB = "Invalid job id specified"
# Options that a node may be too small for.
_SIZES = ("cpus-per-task", "mem", "mem-per-cpu", "gpus-per-node", "gres", "constraint")
# Errors of scancel for a job that has ended.
_ENDED = ("Invalid job id", "already completing or completed")

# squeue and scontrol take about 10 s to fail while slurmctld is down.
SLURM_TIMEOUT_SECONDS = 60
# A helper may run several commands and wait for the site's rate limit (remote/login/slurm_command.py).
HELPER_TIMEOUT_SECONDS = 240
# sacct lags behind squeue by a second or two (measured: 0.9-1.8 s).
ACCOUNTING_TRIES = 3
ACCOUNTING_PAUSE_SECONDS = 1.0


# An estimated start that is nearer counts as now: the estimate is of another second, and of another clock.
NOW_SECONDS = 60.0


class StartEstimate(NamedTuple):
    """Slurm's estimate of a job's start.

    Attributes:
        text: Its output.
        seconds: Seconds until the start; None if the output has no time.
    """

    text: str
    seconds: float | None


@asynccontextmanager
async def open_client(cluster: str | Cluster) -> AsyncIterator[SlurmClient]:
    """Yield a client of a cluster.

    Args:
        cluster: A cluster, or the name of its cluster file.

    Raises:
        ConfigError: The cluster file does not exist or is invalid.
        LoginNodeUnreachable: The login node does not answer.
    """
    if isinstance(cluster, str):
        cluster = await asyncio.to_thread(load_cluster, cluster)
    async with connect(cluster) as login:
        yield SlurmClient(cluster, login.transport, login.calls)


class SlurmClient:
    """Stateless client of Slurm on one cluster.

    Args:
        cluster: The cluster.
        transport: Connection to its login node.
        calls: Calls of helpers by that connection; None to start a process for each call.
    """

    def __init__(self, cluster: Cluster, transport: Transport, calls: Calls | None = None) -> None:
        self.cluster = cluster
        self.transport = transport
        self._calls = calls

    # ---- attempts

    async def submit(
        self,
        resolved: ResolvedJob,
        directory: str,
        key: str,
        owner: dict[str, Any],
        secrets: dict[str, str],
        *,
        is_first: bool = False,
        replaces: Sequence[str] = (),
    ) -> SubmitAnswer:
        """Submit a job exactly once: the same ``directory`` and ``key`` always identify the same job.

        Args:
            resolved: The job.
            directory: The attempt's directory, absolute.
            key: The job's name in Slurm.
            owner: dag_id, run_id, task_id and map_index of the job's task, which are kept in the attempt's directory.
            secrets: File name -> text; sent on standard input and written to files of mode 0600.
            is_first: The attempt is not a retry; see :func:`fingerprint.stage_request`.
            replaces: Attempt directories in other stage directories whose jobs have ended, and which the job replaces.

        Raises:
            ConfigError: Slurm refuses the job (partition, account, size ...), or the workspace cannot be written.
            NotAcceptedYet: Slurm does not accept the job now.
            EarlierAttemptRuns: Processes of an earlier attempt still run.
            SlurmUnavailable: slurmctld does not answer.
            SubmissionUnread: sbatch succeeded, but the job's id could not be determined.
        """
        files = batch_script.files(resolved, directory)
        request = SubmitRequest(
            directory=directory,
            key=key,
            files=files.texts,
            binaries=_base64(files.binaries),
            secrets=secrets,
            owner=owner,
            version=VERSION,
            stage=fingerprint.job_stage_request(resolved.job, is_first=is_first),
            replaces=replaces,
            budget=self._budget(),
        )
        try:
            answer: SubmitAnswer = await self.call_helper("submit", request, SubmitAnswer)
            if answer.status == messages.REFUSED:
                raise _refusal(resolved, answer.message)
            if answer.status == messages.STILL_RUNS:
                raise EarlierAttemptRuns(
                    f"{answer.message}: a node may run on without an answer to slurmctld. They end within two minutes, "
                    "and the job is submitted then; if they do not, end them on the node"
                )
        except (ConfigError, NotAcceptedYet):  # no job will remove the secrets
            await self.transport.run(["rm", "-rf", "--", f"{directory}/{attempt_dir.SECRETS}"])
            raise
        if answer.status == messages.NO_ANSWER:
            raise SlurmUnavailable(f"slurmctld of cluster {self.cluster.name!r}: {answer.message}")
        if answer.status == messages.UNREAD:
            raise SubmissionUnread(
                f"sbatch on cluster {self.cluster.name!r} submitted a job, but its id is unknown: {answer.message}. "
                "Check that `sbatch --parsable` prints the job id on a line of its own there; the next try searches "
                f"for the job by its name {key} before it submits another one"
            )
        return answer

    async def test_only(
        self, resolved: ResolvedJob, directory: str | None = None, key: str = "llmb-test"
    ) -> str:
        """Return Slurm's text on a job's start; see :meth:`estimate_start`."""
        return (await self.estimate_start(resolved, directory, key)).text

    async def estimate_start(
        self, resolved: ResolvedJob, directory: str | None = None, key: str = "llmb-test"
    ) -> StartEstimate:
        """Check with ``sbatch --test-only`` that a job could ever run, without submitting it.

        sbatch gets the same options and the same script as in :meth:`submit`, including the script's own directives.
        For a job that names several partitions, it estimates the start in the first one that has enough nodes (measured
        on 22.05), however full that is; so a job that cannot start now is tested in each of the others, too.

        Args:
            resolved: The job.
            directory: The attempt's directory; None for the stage's first one.
            key: The job's name in Slurm.

        Returns:
            Slurm's estimate of the start, in the partition where it is the earliest.

        Raises:
            ConfigError: Slurm refuses the job.
            NotAcceptedYet: Slurm does not accept the job now, or cannot start it now because nodes are out of service.
            SlurmUnavailable: slurmctld does not answer.
        """
        directory = directory or f"{resolved.job.directory}/{attempt_dir.attempt_name(1)}"
        best = await self._test(resolved, directory, key)
        for job in resolved.in_each_partition():
            if best.seconds is not None and best.seconds < NOW_SECONDS:
                break
            try:
                found = await self._test(job, directory, key)
            except (
                ConfigError,
                NotAcceptedYet,
            ):  # one that refuses the job; Slurm has accepted it for another
                continue
            if found.seconds is not None and (best.seconds is None or found.seconds < best.seconds):
                best = found
        return best

    async def _test(self, resolved: ResolvedJob, directory: str, key: str) -> StartEstimate:
        script = batch_script.render(resolved, directory)
        request = SubmitRequest(
            directory=directory,
            key=key,
            files={attempt_dir.SCRIPT: script},
            budget=self._budget(),
            test_only=True,
        )
        answer: SubmitAnswer = await self.call_helper("submit", request, SubmitAnswer)
        if answer.status == messages.NO_ANSWER:
            raise SlurmUnavailable(f"slurmctld of cluster {self.cluster.name!r}: {answer.message}")
        if answer.status == messages.REFUSED:
            if refusals.classify(answer.message).verdict is Verdict.NODES:
                raise await self._too_few_nodes(resolved, answer.message)
            raise _refusal(resolved, answer.message)
        return StartEstimate(answer.message, answer.starts_in)

    async def _too_few_nodes(self, resolved: ResolvedJob, output: str) -> Exception:
        """Return the error for a job that ``sbatch --test-only`` finds too few nodes for: never, or not now."""
        excluded: list[str] = []
        if names := dict(resolved.directives).get("exclude"):
            excluded = (await self._sinfo(["sinfo", "-a", "-h", "-N", "-n", names, "-o", "%N"])).split()
        nodes = capacity.measure(resolved, await self._sinfo(capacity.argv(resolved)), excluded)
        if nodes is None:
            return _refusal(resolved, output)
        wanted = resolved.job.resources.nodes
        found = f"in partition {nodes.partition!r} {nodes.configured} node(s) fit the job, which requests {wanted}"
        if nodes.in_service < wanted <= nodes.configured:
            return NotAcceptedYet(
                f"the job {resolved.name!r} cannot start now on cluster {self.cluster.name!r}: {found}, but these are "
                f"out of service: {', '.join(nodes.out_of_service)}. It waits in the queue until they are back"
            )
        if nodes.configured < wanted:
            asked = {name: value for name, value in resolved.directives if name in _SIZES}
            found += (
                f" with {', '.join(f'{name} {value}' for name, value in asked.items())}; its nodes have "
                f"{' or '.join(nodes.sizes)}"
            )
        return _refusal(resolved, output, found)

    async def wrong_names(self, jobs: Sequence[ResolvedJob]) -> list[list[WrongNames]]:
        """Return for each job the names in its options that the site does not have."""
        site = await site_names.ask(self.run)
        return [await site_names.wrong_names(job, site, self.run) for job in jobs]

    async def too_large(self, jobs: Sequence[ResolvedJob]) -> list[list[TooLarge]]:
        """Return for each job its sizes that no node of the cluster has; none if sinfo fails."""
        done = await self.run([*capacity.ALL_NODES])
        return [capacity.too_large(job, "" if done.code else done.stdout) for job in jobs]

    async def beyond_partitions(self, jobs: Sequence[ResolvedJob]) -> list[Finding]:
        """Return findings about jobs whose time limit none of their partitions allows."""
        return await site_limits.beyond_partitions(jobs, self.run)

    async def _sinfo(self, argv: list[str]) -> str:
        done = await self.run(argv)
        if done.code:
            raise _unavailable("sinfo", self.cluster, done)
        return done.stdout

    async def put_files(
        self, directory: str, files: AttemptFiles, stage: StageRequest | None = None
    ) -> Sequence[str]:
        """Write files to the cluster, each atomically and with mode 0600.

        Args:
            directory: The attempt's directory, absolute.
            files: The files.
            stage: The stage that the attempt in ``directory`` produces, if any.

        Returns:
            New names of earlier attempts' outputs that were archived for ``stage``.
        """
        request = SubmitRequest(
            directory=directory, files=files.texts, binaries=_base64(files.binaries), stage=stage
        )
        answer: SubmitAnswer = await self.call_helper("submit", request, SubmitAnswer)
        return answer.archived

    async def find_result(self, stage_directory: str, stage: StageRequest) -> FoundResult | None:
        """Return a stage's result if it exists with the same fingerprint and inputs; otherwise None.

        Args:
            stage_directory: The stage's directory on the cluster.
            stage: The stage.
        """
        request = ResultRequest(stage_directory, stage)
        answer: ResultAnswer = await self.call_helper("stage_result", request, ResultAnswer)
        return answer.found

    async def list_attempts(self, stage_directory: str, *, close: bool = False) -> Sequence[AttemptJob]:
        """Return the jobs of all attempts of a stage, oldest first.

        Args:
            stage_directory: The stage's directory on the cluster.
            close: Also close the attempts: none of them can get a job afterwards, and their secrets are removed.

        Raises:
            SlurmUnavailable: The job of an attempt is not recorded, and slurmctld does not answer.
        """
        request = AttemptsRequest(stage_directory, close, self._budget())
        answer: AttemptsAnswer = await self.call_helper("list_attempts", request, AttemptsAnswer)
        if answer.error:
            raise SlurmUnavailable(f"slurmctld of cluster {self.cluster.name!r}: {answer.error}")
        return answer.jobs

    async def list_active(self, seen_without_run: Sequence[str] = ()) -> Sequence[ActiveJob]:
        """Return llm-bridge's pending and running jobs.

        Args:
            seen_without_run: Attempt directories of jobs without a DAG run, to mark as orphans.

        Raises:
            SlurmUnavailable: slurmctld does not answer.
        """
        request = ActiveRequest(self.cluster.workspace, list(seen_without_run), self._budget())
        answer: ActiveAnswer = await self.call_helper("active_jobs", request, ActiveAnswer)
        if answer.error:
            raise SlurmUnavailable(f"slurmctld of cluster {self.cluster.name!r}: {answer.error}")
        return answer.jobs

    async def read(self, path: str) -> str:
        """Return the text of a file on the cluster.

        Raises:
            CommandFailed: It is missing or not readable.
        """
        return await checked(self.transport, ["cat", "--", path])

    async def read_json(self, path: str) -> Any:
        """Return the value in a small JSON file on the cluster; None if it is missing, unreadable or not JSON."""
        try:
            return json.loads(await self.read(path))
        except (CommandFailed, ValueError):
            return None

    # ---- jobs

    async def find(
        self,
        job_ids: Iterable[str],
        *,
        directories: Mapping[str, str] | None = None,
        unlisted: bool = False,
        reserve: int = 0,
    ) -> dict[str, JobInfo]:
        """Query the states of jobs: one squeue for all of them, and one sacct for those that slurmctld has forgotten.

        A job that is missing in the answer is known to neither, which has no meaning for its end. Values that are no
        job ids are not queried.

        Args:
            job_ids: The jobs.
            directories: Attempt directories of the jobs, by id. A slurmctld that crashed may have given a job's id to
                another one, whose directory is another; without a directory the newest job of the id is returned.
            unlisted: Also return jobs that slurmctld does not list and that have not ended for accounting, in state
                UNLISTED. Slurm's commands cannot act on such a job, so the state matters only before another job may
                replace it: a slurmctld that crashed has lost it (accounting never records its end then), or squeue
                did not list all jobs.
            reserve: Number of calls of the site's rate limit (``rpc_budget``) to leave to other callers.

        Raises:
            SlurmUnavailable: slurmctld does not answer.
            RateLimitExceeded: The rate limit does not allow it now.
        """
        ids = [job_id for job_id in job_ids if is_job_id(job_id)]
        if not ids:
            return {}
        argv = ["squeue", "-h", "-t", "all", "-O", SQUEUE_FORMAT]
        done = await self.run([*argv, "-j", ",".join(ids)], reserve=reserve)
        # With a single id, squeue fails for a job that slurmctld has forgotten, instead of printing nothing.
        forgotten = done.code != 0 and _NO_SUCH_JOB in done.stderr
        if forgotten and len(ids) > 1:
            # This squeue fails for one such id among several, too: it must not cost the other jobs their answer.
            done = await self.run([*argv, "--me"], reserve=reserve)
            forgotten = False
        if done.code and not forgotten:
            raise _unavailable("squeue", self.cluster, done)
        # A site's wrapper may print other lines as well.
        rows = [row for row in done.stdout.splitlines() if row.count("|") >= 8]
        listed = dict(from_squeue(row) for row in rows if row.partition("|")[0] in ids)
        directory_of = directories or {}
        found = {
            job_id: info
            for job_id, info in listed.items()
            if job_id not in directory_of or info.belongs_to(directory_of[job_id])
        }
        if missing := [job_id for job_id in ids if job_id not in found]:
            done = await self.run(accounting.argv(missing), reserve=reserve)
            # Without accounting, or while it is unavailable, the job is unknown, which has no meaning for its end.
            known = accounting.rows(done.stdout if done.code == 0 else "")
            for job_id in missing:
                own = accounting.of_job(job_id, known, directory_of.get(job_id, ""))
                info = accounting.job_info(own[-1]) if own else None
                if info and info.phase is Phase.ENDED:
                    found[job_id] = info
                elif info and unlisted:
                    found[job_id] = replace(info, state=UNLISTED, reason=info.state)
        return found

    async def look_up(self, job_id: str, directory: str) -> JobInfo | None:
        """Return the state of one job: from Slurm, unless its outcome file says that it has completed its work.

        Args:
            job_id: The job.
            directory: Its attempt's directory.
        """
        known = (await self.find([job_id], directories={job_id: directory})).get(job_id)
        if known and known.meaning.good:
            return known
        outcome = attempt_dir.parse(Outcome, await self.read_json(f"{directory}/{attempt_dir.OUTCOME}"))
        if not known:
            return from_outcome(job_id, outcome) if outcome else None
        if not outcome:
            return known
        started = attempt_dir.parse(Started, await self.read_json(f"{directory}/{attempt_dir.STARTED}"))
        return prefer_job_outcome(known, outcome, started)

    async def seconds_by_files(self, directory: str) -> float | None:
        """Return the run time of an attempt's job by its own clock; None if it has not started, or its end is unknown.

        Args:
            directory: The attempt's directory.
        """
        started = attempt_dir.parse(Started, await self.read_json(f"{directory}/{attempt_dir.STARTED}"))
        outcome = attempt_dir.parse(Outcome, await self.read_json(f"{directory}/{attempt_dir.OUTCOME}"))
        return max(0.0, outcome.ended - started.started) if started and outcome else None

    async def accounting(self, job_id: str, *, ended: bool, directory: str = "") -> Accounting | None:
        """Return a job's accounting record; None if the site has no accounting, or it is unavailable.

        Args:
            job_id: The job.
            ended: The job has ended for squeue: query several times until accounting has recorded the end.
            directory: Directory of its attempt; empty for the newest job of this id.
        """
        found = None
        if not is_job_id(job_id):
            return None
        for number in range(ACCOUNTING_TRIES):
            if number:
                await asyncio.sleep(ACCOUNTING_PAUSE_SECONDS)
            try:
                done = await self._sacct([job_id])
            except SlurmUnavailable:
                return found
            if done.code:
                return None
            found = accounting.summarize(job_id, accounting.rows(done.stdout), directory)
            if found and (not ended or found.is_final):
                break
        return found

    async def usage(self, jobs: Sequence[AttemptJob]) -> dict[str, Accounting]:
        """Return the accounting records of jobs that have ended, by directory, with one query for all of them.

        It is repeated while accounting has not recorded an end. A job without a record is missing, as all are where the
        site has no accounting.

        Args:
            jobs: The jobs.
        """
        found: dict[str, Accounting] = {}
        directories = {job.directory: job.job_id for job in jobs if is_job_id(job.job_id)}
        ids = list(dict.fromkeys(directories.values()))
        for number in range(ACCOUNTING_TRIES if ids else 0):
            if number:
                await asyncio.sleep(ACCOUNTING_PAUSE_SECONDS)
            done = await self._sacct(ids)
            if done.code:
                break
            known = accounting.rows(done.stdout)
            for directory, job_id in directories.items():
                if record := accounting.summarize(job_id, known, directory):
                    found[directory] = record
            if len(found) == len(directories) and all(record.is_final for record in found.values()):
                break
        return found

    async def _sacct(self, job_ids: Sequence[str]) -> Completed:
        """Query accounting for some jobs and their steps, without their usage if this sacct does not have it."""
        done = await self.run(accounting.argv(job_ids, steps=True, usage=True))
        if done.code and accounting.refuses_a_field(done.stderr):
            done = await self.run(accounting.argv(job_ids, steps=True))
        return done

    async def cancel(self, job_ids: Iterable[str]) -> None:
        """Run ``scancel``: SIGTERM to the job's steps, and SIGKILL after the site's KillWait (slurm.conf(5)).

        A job that has ended already is no error. Values that are no job ids are left out, with a warning.

        Args:
            job_ids: The jobs.

        Raises:
            ConfigError: Slurm refuses it, for example because the jobs belong to another user.
            SlurmUnavailable: slurmctld does not answer.
        """
        given = list(job_ids)
        ids = [job_id for job_id in given if is_job_id(job_id)]
        if bad := [job_id for job_id in given if job_id not in ids]:
            log.warning("not cancelled, because these are no Slurm job ids: %s", bad)
        if ids:
            done = await self.run(["scancel", *ids])
            # A line per job: one that has ended must not hide the error of another one.
            errors = done.stderr.splitlines()
            others = [line for line in errors if not any(text in line for text in _ENDED)]
            refusal = refusals.classify("\n".join(others))
            if done.code and (len(others) == len(errors) or refusal.text):
                # A text that is not in the table is no reason to leave jobs running: scancel is tried again.
                if refusal.text and refusal.verdict is Verdict.NEVER:
                    raise ConfigError(
                        f"scancel on cluster {self.cluster.name!r} refuses to cancel {', '.join(ids)} "
                        f"({refusal.meaning}): {done.stderr.strip()}"
                    )
                raise _unavailable("scancel", self.cluster, done)

    async def user_name(self, uid: str) -> str:
        """Return the name of a user id on the cluster; empty if it has none."""
        known = await self.transport.run(["id", "-nu", uid])
        return known.stdout.strip() if known.code == 0 else ""

    async def down_nodes(self, nodes: str) -> dict[str, str]:
        """Return the nodes that Slurm cannot use now: name -> state and reason.

        Args:
            nodes: Slurm's node list.

        Raises:
            SlurmUnavailable: slurmctld does not answer.
        """
        done = await self.run(["sinfo", "-a", "-h", "-N", "-n", nodes, "-o", "%N|%t|%E"])
        if done.code:
            raise _unavailable("sinfo", self.cluster, done)
        rows = [line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2]
        return {
            node: state + (f", {reason}" if reason != "none" else "")
            for node, state, reason in rows
            # sinfo(1): a trailing * means that the node does not answer; fail and boot are about to be down.
            if state.endswith("*") or state.startswith(("down", "fail", "boot"))
        }

    async def release(self, job_id: str) -> bool:
        """Release a held job; return true if ``scontrol release`` succeeded.

        Args:
            job_id: The job.

        Raises:
            RateLimitExceeded: The site's rate limit does not allow it now.
        """
        return is_job_id(job_id) and (await self.run(["scontrol", "release", job_id], reserve=1)).code == 0

    async def ping(self) -> bool:
        """Return true if slurmctld answers."""
        done = await self.run(["scontrol", "ping"])
        return done.code == 0 and " UP" in done.stdout

    # ---- the login node

    async def run(self, argv: list[str], *, stdin: str = "", reserve: int = 0) -> Completed:
        """Run one Slurm command within the site's rate limit.

        Args:
            argv: The command.
            stdin: Its standard input.
            reserve: Number of calls of the rate limit to leave to other callers.

        Raises:
            RateLimitExceeded: The rate limit does not allow it now; only with ``reserve``.
        """
        budget = self._budget()
        if budget is None:
            return await self.transport.run(argv, stdin=stdin.encode(), timeout=SLURM_TIMEOUT_SECONDS)
        request = CommandRequest(argv, stdin, budget, reserve)
        answer: CommandAnswer = await self.call_helper("slurm_command", request, CommandAnswer)
        if answer.wait_seconds is not None:
            raise RateLimitExceeded(answer.wait_seconds)
        return Completed(answer.code, answer.stdout, answer.stderr)

    async def call_helper(
        self, helper: str, request: Any, answer: Any, timeout: float = HELPER_TIMEOUT_SECONDS
    ) -> Any:
        """Run ``remote/login/HELPER.py`` on the login node.

        Args:
            helper: Name of the helper.
            request: A message of ``remote/messages.py``.
            answer: Class of the message to return.
            timeout: Maximum seconds to wait.

        Raises:
            WorkspaceNotWritable: It is full, over its quota, or read-only.
        """
        values = messages.encode(request)
        try:
            return messages.decode(answer, await self._answer(helper, values, timeout))
        except CommandFailed as error:
            raise _not_writable(self.cluster, error) or error from None

    async def _answer(self, helper: str, request: dict[str, Any], timeout: float) -> Any:
        if self._calls and helper in helpers.SERVED:
            with suppress(NotStarted):
                return await self._calls.call(helper, request, timeout)
        argv, stdin = helpers.argv(self.cluster.login_python), helpers.first_line(helper, request)
        answered = await checked(self.transport, argv, stdin=stdin, timeout=timeout)
        # One line; a forced command of sshd may print others after it ("session recorded").
        return json.loads(answered.partition("\n")[0])

    @asynccontextmanager
    async def poll_session(self) -> AsyncIterator[Session]:
        """Yield a session of ``remote/login/poll_jobs.py``."""
        async with self.transport.session(helpers.argv(self.cluster.login_python)) as session:
            session.send(helpers.first_line("poll_jobs", {}).rstrip())
            yield session

    def _budget(self) -> RateBudget | None:
        limit = self.cluster.rpc_budget
        path = f"{self.cluster.workspace}/.llm-bridge/rpc_budget.json"
        return RateBudget(path, limit.burst, limit.per_minute) if limit else None


def _not_writable(cluster: Cluster, error: CommandFailed) -> WorkspaceNotWritable | None:
    """Return the error for a helper that ended because it could not write to the workspace; else None."""
    # The last line of Python's traceback. The number, because the text depends on the login node's language.
    last = error.done.stderr.strip().rpartition("\n")[2]
    found = re.match(r"OSError: \[Errno (\d+)\] ", last)
    if not found or int(found[1]) not in attempt_dir.NOT_WRITABLE:
        return None
    return WorkspaceNotWritable(
        f"the workspace {cluster.workspace} on cluster {cluster.name!r} cannot be written: {last[found.end() :]}. Free "
        f"space or raise the quota there, or correct `workspace` in include/clusters/{cluster.name}.yaml"
    )


def _base64(binaries: dict[str, bytes]) -> dict[str, str]:
    return {path: base64.b64encode(data).decode("ascii") for path, data in binaries.items()}


def _refusal(resolved: ResolvedJob, output: str, found: str = "") -> Exception:
    """Return the error for a job that sbatch refused.

    Args:
        resolved: The job.
        output: Output of sbatch.
        found: Cause that was found in addition.
    """
    cluster, refusal = resolved.cluster.name, refusals.classify(output)
    if refusal.verdict is Verdict.NO_ANSWER:
        return SlurmUnavailable(f"slurmctld of cluster {cluster!r}: {refusal.meaning}: {output}")
    if refusal.verdict is Verdict.NOT_NOW:
        return NotAcceptedYet(
            f"Slurm on cluster {cluster!r} does not accept the job {resolved.name!r} now; {refusal.meaning}: {output}"
        )
    more = "".join(f". {part[0].upper()}{part[1:]}" for part in (found, refusal.meaning) if part)
    return JobRefused(output + more, resolved.name, cluster)


def _unavailable(command: str, cluster: Cluster, done: Completed) -> SlurmUnavailable:
    output = done.stderr.strip() or done.stdout.strip()
    return SlurmUnavailable(
        f"`{command}` on cluster {cluster.name!r} ended with exit code {done.code}: {output[-500:]}"
    )
