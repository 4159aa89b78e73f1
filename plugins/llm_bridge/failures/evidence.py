"""What is known of a failed attempt, and how it is collected from the cluster."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm_bridge.config.load import load_cluster
from llm_bridge.failures import accounting
from llm_bridge.failures.accounting import Accounting
from llm_bridge.failures.signatures import BY_ID, TABLE, Signature
from llm_bridge.failures.words import words_of
from llm_bridge.slurm.client import SlurmClient, SlurmUnreachable
from llm_bridge.slurm.info import JobInfo
from llm_bridge.slurm.states import Phase
from llm_bridge.transport import CommandFailed, LoginNodeUnreachable, connect

# Of each log, and for all of them: about 10 MiB a second are read.
MAX_BYTES = 64 * 2**20
SCAN_SECONDS = 20.0
HELPER_SECONDS = 120.0


@dataclass(frozen=True)
class Match:
    """A signature that was seen.

    :param file: the log, on the cluster. :param line: None where it is not known (a log that was not read whole).
    :param order: the more telling the log, the smaller.
    """

    id: str
    text: str
    file: str = ""
    line: int | None = None
    node: str | None = None
    order: int = 0

    @property
    def signature(self) -> Signature:
        return BY_ID[self.id]

    @property
    def source(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Evidence:
    """What is known of a failed attempt; everything may be missing.

    :param job_id: Slurm's. :param gpus: of all its nodes together.
    :param trains: it makes checkpoints of its own. :param step: the newest complete one now.
    :param before: the newest complete one as the attempt began.
    :param info: what squeue, sacct or the job itself says of its end.
    :param notice: why it cannot be followed; "timeout" when the task's own limit has passed, "hang..." for a hang.
    :param reason: ``reason.json``, the job's own word.
    :param ray: ``status``, ``error_type``, ``driver_exit_code`` and ``message`` of a Ray job.
    :param last_line: of its output. :param full: what a small write into the workspace is refused with.
    :param down: those of its nodes that Slurm shows as down. :param users: user id -> name.
    """

    job_id: str = ""
    gpus: int = 0
    trains: bool = False
    info: JobInfo | None = None
    notice: str = ""
    reason: Mapping[str, Any] | None = None
    ray: Mapping[str, Any] | None = None
    accounting: Accounting | None = None
    found: tuple[Match, ...] = ()
    last_line: str = ""
    step: int | None = None
    before: int | None = None
    saved_at: float | None = None
    started: float | None = None
    ended: float | None = None
    full: str = ""
    down: tuple[str, ...] = ()
    users: Mapping[str, str] | None = None
    attempt: int = 1
    of: int | None = None

    @property
    def seconds(self) -> float | None:
        """How long the attempt ran."""
        if self.accounting and self.accounting.elapsed:
            return self.accounting.elapsed
        return max(0.0, self.ended - self.started) if self.started and self.ended else None


@dataclass(frozen=True)
class Place:
    """Where on the cluster to look.

    :param directory: the attempt's. :param logs: paths or patterns, the most telling first.
    :param checkpoints: the directory of verl's checkpoints, if the attempt makes any.
    :param ray_cluster: the attempt's directory of the Ray cluster that it ran on.
    """

    cluster: str
    job_id: str
    directory: str
    logs: tuple[str, ...]
    checkpoints: str | None = None
    ray_cluster: str | None = None


def slurm_logs(directory: str) -> tuple[str, ...]:
    """The logs of a Slurm job, which may be a Ray cluster."""
    return (f"{directory}/output.log", f"{directory}/ray_nodes/*.log", f"{directory}/ray_logs/*/*")


def in_lines(lines: Iterable[str], file: str = "") -> tuple[Match, ...]:
    """The first match of each signature in lines that are here already."""
    found: dict[str, Match] = {}
    for number, line in enumerate(lines):
        for signature in TABLE:
            if signature.id not in found and (match := re.search(signature.seen, line)):
                node = match.groupdict().get("node")
                # Not a line number of the log: an order only.
                found[signature.id] = Match(signature.id, line.strip()[:400], file, None, node, number)
    return tuple(found.values())


async def collect(known: Evidence, place: Place, last_lines: Iterable[str] = ()) -> Evidence:
    """Add what lies on the cluster: one call of the helper, and sacct beside it.

    A login node or slurmctld that is away takes nothing from ``known``: then the last lines have to do.
    """
    ended = known.info is not None and known.info.phase is Phase.ENDED
    log = f"{place.directory}/output.log" if place.directory else "the task's log"
    fallback = replace(known, found=in_lines(last_lines, log))
    if not place.cluster:  # somebody else's Ray cluster, or the worker itself
        return fallback
    try:
        cluster = await asyncio.to_thread(load_cluster, place.cluster)
        async with connect(cluster) as transport:
            client = SlurmClient(cluster, transport)
            told = await accounting.look(client, place.job_id, ended=ended) if place.job_id else None
            answer = await client.ask("evidence", request(place, told), timeout=HELPER_SECONDS)
            down: tuple[str, ...] = ()
            if known.info and known.info.nodes and known.info.state in ("NODE_FAIL", "BOOT_FAIL"):
                down = await accounting.down_nodes(client, known.info.nodes)
    except (LoginNodeUnreachable, SlurmUnreachable, CommandFailed, TimeoutError):
        return fallback
    return with_answer(replace(known, accounting=told, down=down), answer, fallback.found)


def request(place: Place, told: Accounting | None) -> dict[str, Any]:
    """What ``include/login/evidence.py`` reads."""
    seen = [{"id": s.id, "seen": s.seen, "words": words_of(s.seen)} for s in TABLE]
    return {
        "directory": place.directory,
        "logs": list(place.logs),
        "signatures": seen,
        "checkpoints": place.checkpoints,
        "addresses": f"{place.ray_cluster}/cluster.json" if place.ray_cluster else None,
        "max_bytes": MAX_BYTES,
        "seconds": SCAN_SECONDS,
        "uids": [told.cancelled_by] if told and told.cancelled_by else [],
    }


def with_answer(known: Evidence, answer: dict[str, Any], fallback: tuple[Match, ...]) -> Evidence:
    """``known`` with the helper's answer."""
    now, before = answer["checkpoints"]["now"], answer["checkpoints"]["before"]
    times = answer["times"]
    # A Ray job that was killed outright left no word of when it started: that was when it was submitted, more or less.
    started = times["started"] or (times["submitted"] if known.ray else None)
    return replace(
        known,
        gpus=known.gpus or (known.accounting.gpus if known.accounting else 0),
        found=tuple(Match(**match) for match in answer["found"]) or fallback,
        last_line=answer["last"],
        step=now["step"] if now else None,
        before=before["step"] if before else None,
        saved_at=now["at"] if now else None,
        started=started,
        ended=times["ended"],
        full=answer["space"]["full"],
        users=answer["users"],
    )
