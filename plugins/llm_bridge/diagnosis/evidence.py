"""Evidence of a failed attempt, and its collection from the cluster."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product

from llm_bridge.diagnosis.prefilter import words_of
from llm_bridge.diagnosis.signatures import BY_ID, TABLE, Signature
from llm_bridge.exceptions import ClusterUnavailable, SlurmUnavailable
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.remote.login import evidence as log_scan
from llm_bridge.remote.messages import EvidenceAnswer, EvidenceRequest, SignatureQuery
from llm_bridge.remote.transport import CommandFailed
from llm_bridge.slurm.accounting import Accounting
from llm_bridge.slurm.client import SlurmClient, open_client
from llm_bridge.slurm.status import JobInfo, Phase

# Limit of the bytes read of each log, and of the time for all of them: the helper reads about 10 MiB a second.
MAX_BYTES = 64 * 2**20
SCAN_SECONDS = 20.0
HELPER_TIMEOUT_SECONDS = 120.0
# Characters of a matching line that are kept.
MAX_TEXT_LENGTH = 400


@dataclass(frozen=True)
class SignatureMatch:
    """Match of a signature in a log.

    Attributes:
        id: Id of the signature.
        text: The line that matched, without its prefix.
        file: Path of the log on the cluster.
        line: Line number from 1 on; None where it is unknown (end of a log that was not read completely).
        node: Node at fault; None if unknown.
        order: Position of the log in the request; logs with more direct evidence have smaller numbers.
    """

    id: str
    text: str
    file: str = ""
    line: int | None = None
    node: str | None = None
    order: int = 0

    @property
    def signature(self) -> Signature:
        """Signature that matched."""
        return BY_ID[self.id]

    @property
    def source(self) -> str:
        """Place of the match: ``FILE:LINE``, or ``FILE`` without a line number."""
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Evidence:
    """Evidence of a failed attempt; every part of it may be missing.

    Attributes:
        job_id: Slurm's job id.
        gpus: Number of GPUs of all nodes together.
        trains: True if the job writes checkpoints.
        info: End of the job as squeue, sacct or the job itself reported it.
        notice: One line about an end that ``info`` does not explain (a hang, a job that Slurm has lost).
        timed_out: True if the task's own time limit has passed.
        hung: True if llm-bridge ended the job because it hung.
        forgotten: True if Slurm has lost the job.
        reason: The job's own explanation (``reason.json``).
        is_ray: True for a Ray job; the next four belong to it.
        cluster_ended: True if the job ended because its cluster's Slurm job ended.
        ray_error_type: Ray's ``JobErrorType``.
        ray_message: Ray's message about the job's end.
        driver_exit_code: Exit code of the job's entrypoint.
        accounting: The job's accounting (sacct).
        found: Matches of signatures.
        last_line: Last line of the job's output.
        step: Step of the newest complete checkpoint now.
        before: Step of the newest complete checkpoint when the attempt began.
        saved_at: Time of the newest complete checkpoint, in epoch seconds.
        started: Start of the attempt, in epoch seconds.
        ended: End of the attempt, in epoch seconds.
        full: Error text of a small write into the workspace; empty if the write succeeded.
        down: Nodes of the job that Slurm shows as down.
        users: User names by user id.
        try_number: Number of the task's try, from 1 on.
        max_tries: Number of tries that the task has; None if unknown.
    """

    job_id: str = ""
    gpus: int = 0
    trains: bool = False
    info: JobInfo | None = None
    notice: str = ""
    timed_out: bool = False
    hung: bool = False
    forgotten: bool = False
    reason: Reason | None = None
    is_ray: bool = False
    cluster_ended: bool = False
    ray_error_type: str | None = None
    ray_message: str = ""
    driver_exit_code: int | None = None
    accounting: Accounting | None = None
    found: tuple[SignatureMatch, ...] = ()
    last_line: str = ""
    step: int | None = None
    before: int | None = None
    saved_at: float | None = None
    started: float | None = None
    ended: float | None = None
    full: str = ""
    down: tuple[str, ...] = ()
    users: Mapping[str, str] | None = None
    try_number: int = 1
    max_tries: int | None = None

    @property
    def seconds(self) -> float | None:
        """Run time of the attempt in seconds; None if unknown."""
        if self.accounting and self.accounting.elapsed:
            return self.accounting.elapsed
        return max(0.0, self.ended - self.started) if self.started and self.ended else None


@dataclass(frozen=True)
class LogLocation:
    """Location of an attempt's logs and checkpoints on the cluster.

    Attributes:
        cluster: Name of the cluster file; empty for a job without a cluster (a foreign Ray cluster, the worker itself).
        job_id: Slurm's job id; empty for a job without one.
        directory: The attempt's directory.
        logs: Paths or patterns of logs, those with the most direct evidence first.
        checkpoints: Directory of verl's checkpoints; None if the attempt writes none.
        ray_cluster: Attempt directory of the Ray cluster on which the attempt ran; None for a Slurm job.
    """

    cluster: str
    job_id: str
    directory: str
    logs: tuple[str, ...]
    checkpoints: str | None = None
    ray_cluster: str | None = None


def slurm_logs(directory: str) -> tuple[str, ...]:
    """Return the log patterns of a Slurm job, those of a Ray cluster included.

    Args:
        directory: The attempt's directory.
    """
    return (
        f"{directory}/{attempt_dir.OUTPUT}",
        f"{directory}/{attempt_dir.RAY_NODES}/*.log",
        f"{directory}/{attempt_dir.RAY_LOGS}/*/*",
    )


def in_lines(lines: Iterable[str], file: str = "", node_list: str = "") -> tuple[SignatureMatch, ...]:
    """Return the first match of each signature in lines that Airflow has already.

    Args:
        lines: Lines of a log.
        file: Path of the log on the cluster.
        node_list: The job's nodes in Slurm's short form, such as ``gpu[01-03]``.
    """
    nodes = log_scan.hosts(node_list)
    found: dict[str, SignatureMatch] = {}
    for number, line in enumerate(lines):
        for (text, printing_node), signature in product(log_scan.split_states(line, nodes), TABLE):
            if signature.id not in found and (match := re.search(signature.seen, text)):
                node = match.groupdict().get("node") or (printing_node if signature.of_speaker else None)
                # The position among these lines orders the matches; it is not a line number of the log.
                found[signature.id] = SignatureMatch(
                    signature.id, text.strip()[:MAX_TEXT_LENGTH], file, None, node, number
                )
    return tuple(found.values())


async def collect(partial: Evidence, location: LogLocation, last_lines: Iterable[str] = ()) -> Evidence:
    """Add the evidence on the cluster: one call of the helper ``evidence``, and sacct.

    If the login node or slurmctld is unavailable, ``partial`` is kept and only ``last_lines`` are searched.

    Args:
        partial: Evidence that is available without the cluster.
        location: Logs and checkpoints on the cluster.
        last_lines: Last lines of the output, used if the cluster is unavailable.
    """
    ended = partial.info is not None and partial.info.phase is Phase.ENDED
    log = f"{location.directory}/{attempt_dir.OUTPUT}" if location.directory else "the task's log"
    fallback = replace(partial, found=in_lines(last_lines, log, partial.info.nodes if partial.info else ""))
    if not location.cluster:  # a foreign Ray cluster, or the worker itself
        return fallback
    try:
        async with open_client(location.cluster) as client:
            directory = partial.info.directory if partial.info else ""
            accounting = (
                await client.accounting(location.job_id, ended=ended, directory=directory)
                if location.job_id
                else None
            )
            answer = await client.call_helper(
                "evidence", request(location, accounting), EvidenceAnswer, timeout=HELPER_TIMEOUT_SECONDS
            )
            down = await _down_nodes(client, partial.info)
    except (ClusterUnavailable, CommandFailed, TimeoutError):
        return fallback
    return with_answer(replace(partial, accounting=accounting, down=down), answer, fallback.found)


async def _down_nodes(client: SlurmClient, info: JobInfo | None) -> tuple[str, ...]:
    """Return the nodes of a lost job that Slurm shows as down; empty while slurmctld is unavailable."""
    if not info or not info.nodes or info.state not in ("NODE_FAIL", "BOOT_FAIL"):
        return ()
    try:
        return tuple(await client.down_nodes(info.nodes))
    except SlurmUnavailable:
        return ()


def request(location: LogLocation, accounting: Accounting | None) -> EvidenceRequest:
    """Return the request to the helper ``remote/login/evidence.py``.

    Args:
        location: Logs and checkpoints on the cluster.
        accounting: The job's accounting; its user id of a cancel is resolved to a name on the cluster.
    """
    return EvidenceRequest(
        directory=location.directory,
        logs=location.logs,
        signatures=[SignatureQuery(s.id, s.seen, words_of(s.seen), s.of_speaker) for s in TABLE],
        checkpoints=location.checkpoints,
        addresses=f"{location.ray_cluster}/{attempt_dir.CLUSTER}" if location.ray_cluster else None,
        max_bytes=MAX_BYTES,
        seconds=SCAN_SECONDS,
        uids=[accounting.cancelled_by] if accounting and accounting.cancelled_by else [],
    )


def with_answer(partial: Evidence, answer: EvidenceAnswer, fallback: tuple[SignatureMatch, ...]) -> Evidence:
    """Return ``partial`` with the helper's answer.

    Args:
        partial: Evidence that is available without the cluster.
        answer: Answer of ``remote/login/evidence.py``.
        fallback: Matches to use if the helper found none.
    """
    found = tuple(SignatureMatch(m.id, m.text, m.file, m.line, m.node, m.order) for m in answer.found)
    # A Ray job that was killed by SIGKILL has not written when it started; its submission is a close estimate.
    started = answer.started or (answer.submitted if partial.is_ray else None)
    return replace(
        partial,
        gpus=partial.gpus or (partial.accounting.gpus if partial.accounting else 0),
        found=found or fallback,
        last_line=answer.last_line,
        step=answer.newest.step if answer.newest else None,
        before=answer.newest_before.step if answer.newest_before else None,
        saved_at=answer.newest.at if answer.newest else None,
        started=started,
        ended=answer.ended,
        full=answer.full,
        users=answer.users,
    )
