"""Collect evidence of a job's failure: matches in its logs, checkpoints, times, free space.

Takes an EvidenceRequest, answers with an EvidenceAnswer (``remote/messages.py``).

The first match of each signature in each log counts, from the job's current start on: Slurm may have run the job before
in the same directory (requeue), with its output in the same file. Of a log that is longer than `max_bytes`, the
beginning and the end are read. Whatever looks like a token is replaced before it leaves the cluster.

Never calls slurmctld. Python 3.6 syntax, standard library only, as in all helpers.
"""

import contextlib
import errno
import glob
import json
import os
import pwd
import re
import tempfile
import time
import zipfile
from itertools import product
from typing import Any, Collection, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.messages import (
    EvidenceAnswer,
    EvidenceRequest,
    LogMatch,
    SavedStep,
    SignatureQuery,
    decode,
    encode,
)

MAX_LINE_LENGTH = 2000
MAX_TEXT_LENGTH = 400
# Of a log that is too long, 1/HEAD_SHARE of the bytes to read are read at its beginning, the others at its end.
HEAD_SHARE = 8
# First line that a batch script prints at each start (batch.sh.j2).
START_MARK = b"[llm-bridge] llmb-"
START = re.compile(r"^\[llm-bridge\] llmb-\S+: Slurm job \d+ on (?P<nodes>\S+)")
COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# In this order: srun --label, prefix_output.sh, Ray (name, process, address), torchrun's role and torch's rank, vLLM's
# process and logger, which prints each line of a traceback as an error.
# Ray has no name for what a worker prints before its actor or task is known, such as errors of imports.
PREFIX = re.compile(
    r"^(?P<label>\s*\d+: )?(\[(?P<node>[A-Za-z0-9][\w.-]*)\] )?"
    r"(\(([\w.<>:-]+(\([^()]*\))?( pid=\d+)?|pid=\d+)(, ip=(?P<ip>[\da-fA-F.:]+))?\) ?"
    r"|\[[A-Za-z_]*[a-z]\d+\]: ?"
    r"|ERROR \d\d-\d\d \d\d:\d\d:\d\d \[[\w./-]+:\d+\] )*"
)
# A host name, unlike "[INFO] ", "[ray] " and "[llm-bridge] ", has a letter and a digit.
HOST = re.compile(r"(?=.*[A-Za-z]).*\d")
SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+|\b[0-9a-f]{40,}\b|(?<=key=)\S{16,}")
SHARD_KINDS = ("model", "optim", "extra_state")


def split_prefix(line: str, nodes: Collection[str] = ()) -> Tuple[str, Optional[str]]:
    """Split a line into its text and the node that printed it.

    Args:
        line: A line of a log, without carriage returns (:func:`split_states`).
        nodes: The job's nodes; text in brackets that is none of them is part of the line. If the nodes are unknown
            (empty), a prefix that looks like a host name is removed, but is not returned as the node.

    Returns:
        The text without colours and prefixes, and the node or its address; None if the prefix names neither.
    """
    line = COLOUR.sub("", line).rstrip()
    found = PREFIX.match(line)
    assert found  # PREFIX also matches an empty text
    end, name = found.end(), found.group("node")
    if name and not (name in nodes if nodes else HOST.match(name)):
        end = found.end("label") if found.group("label") else 0
    return line[end:], name if name in nodes else found.group("ip")


def split_states(line: str, nodes: Collection[str] = ()) -> List[Tuple[str, Optional[str]]]:
    """Split a line at carriage returns: the states of a progress bar, and what was printed between two of them.

    Args:
        line: A line of a log.
        nodes: As for :func:`split_prefix`.

    Returns:
        At least one text with its node, as :func:`split_prefix` returns them; without a prefix of its own, the node of
        the text before it.
    """
    states: List[Tuple[str, Optional[str]]] = []
    node: Optional[str] = None
    for state in line.rstrip().split("\r"):
        text, own = split_prefix(state, nodes)
        node = own or node
        states.append((text, node))
    return states


def hosts(node_list: str) -> List[str]:
    """Return the names in a Slurm node list such as ``gpu[01-03,7],n1``."""
    names: List[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", node_list):
        found = re.search(r"\[([\d,-]+)\]", item)
        if not found:
            names.append(item)
            continue
        for part in found.group(1).split(","):
            low, _, high = part.partition("-")
            for number in range(int(low), int(high or low) + 1):
                names += hosts(item[: found.start()] + str(number).zfill(len(low)) + item[found.end() :])
    return names


class Scan:
    """Search for signatures in logs, within limits of size and time.

    Args:
        signatures: As in the request.
        max_bytes: Maximum bytes to read of one log.
        until: Epoch seconds at which to stop.

    Attributes:
        unread: Number of bytes that were not read.
        last: Last line of the first log that is not empty.
    """

    def __init__(self, signatures: Sequence[SignatureQuery], max_bytes: int, until: float) -> None:
        self.signatures = [(s.id, re.compile(s.seen), s.of_speaker) for s in signatures]
        # Regular expressions are slow (1 MiB/s for all of them): a line with none of these words is skipped.
        words = [s.words or () for s in signatures]
        self.words = [word.encode() for some in words for word in some] if all(words) else [b""]
        self.words.append(START_MARK)
        self.max_bytes, self.until = max_bytes, until
        self.unread = 0
        self.last = ""

    def log(self, path: str, order: int) -> List[LogMatch]:
        """Return the first match of each signature in one log.

        Args:
            path: The log.
            order: Index of the log in the request.

        Raises:
            OSError: The log cannot be read.
        """
        found: Dict[str, LogMatch] = {}
        nodes: Sequence[str] = ()
        last = b""
        for number, raw, words in self.lines(path):
            if raw.strip():
                last = raw
            if not any(word in raw for word in words):
                continue
            line = raw.decode("utf-8", "replace")[-MAX_LINE_LENGTH:]
            start = START.match(line)
            if start:
                found, nodes = {}, hosts(start.group("nodes"))
            for (text, speaker), (name, seen, of_speaker) in product(
                split_states(line, nodes), self.signatures
            ):
                match = None if name in found else seen.search(text)
                if match:
                    found[name] = LogMatch(
                        id=name,
                        file=path,
                        text=SECRET.sub("[secret]", text)[:MAX_TEXT_LENGTH],
                        line=number,
                        node=match.groupdict().get("node") or (speaker if of_speaker else None),
                        order=order,
                    )
        text = split_states(last[-MAX_LINE_LENGTH:].decode("utf-8", "replace"), nodes)[-1][0]
        self.last = self.last or SECRET.sub("[secret]", text)[:MAX_TEXT_LENGTH]
        return list(found.values())

    def lines(self, path: str) -> Iterator[Tuple[Optional[int], bytes, Sequence[bytes]]]:
        """Yield the lines of a log, or of its beginning and end if it is too long.

        Args:
            path: The log.

        Yields:
            The line's number, None after a gap; the line; those words that the line may contain.

        Raises:
            OSError: The log cannot be read.
        """
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            number: Optional[int] = 0
            head = self.max_bytes // HEAD_SHARE
            skip = size > self.max_bytes
            while True:
                if time.time() > self.until:
                    self.unread += max(0, size - stream.tell())
                    return
                if skip and stream.tell() > head:
                    skip, number = False, None
                    tail = size - (self.max_bytes - head)
                    self.unread += max(0, tail - stream.tell())
                    stream.seek(max(tail, stream.tell()))
                    stream.readline()
                batch = stream.readlines(1 << 20)
                if not batch:
                    return
                whole = b"".join(batch)
                words = [word for word in self.words if word in whole]
                for line in batch:
                    number = None if number is None else number + 1
                    yield number, line, words


def complete(checkpoint: str) -> Optional[float]:
    """Return the time at which a verl checkpoint was completed (epoch seconds); None if it is incomplete.

    As remote/node/verl/checkpoints.py, but without the recipe's settings for what is saved: if a kind of shard exists,
    it must exist for all processes and be whole. The position in the data must exist.

    Args:
        checkpoint: The checkpoint's directory, ``.../global_step_N``.
    """
    beside = glob.escape(os.path.dirname(checkpoint))
    roles = [name for name in ("actor", "critic") if glob.glob(os.path.join(beside, "global_step_*", name))]
    parts = [os.path.join(checkpoint, name) for name in roles] or [checkpoint]
    positions = glob.glob(os.path.join(glob.escape(checkpoint), "data*.pt*"))
    newest = max([os.stat(path).st_mtime for path in positions] or [0])
    for part in parts:
        try:
            with open(os.path.join(part, "fsdp_config.json")) as stream:
                processes = json.load(stream)["world_size"]
        except (OSError, ValueError, KeyError):
            return None
        names = set(os.listdir(part))
        for kind in SHARD_KINDS:
            shards = ["%s_world_size_%d_rank_%d.pt" % (kind, processes, rank) for rank in range(processes)]
            there = [os.path.join(part, name) for name in shards if name in names]
            if (kind == "model" or there) and len(there) < processes:
                return None
            if not all(zipfile.is_zipfile(path) for path in there):
                return None
            newest = max([newest] + [os.stat(path).st_mtime for path in there])
    return newest if positions else None


def checkpoints(directory: str, began: Optional[float]) -> Tuple[Optional[SavedStep], Optional[SavedStep]]:
    """Find the newest complete checkpoints.

    Args:
        directory: Directory of the checkpoints.
        began: The attempt's submission in epoch seconds; None if unknown.

    Returns:
        The newest one, and the newest one that was complete at ``began``.
    """
    newest: Optional[SavedStep] = None
    steps: Dict[int, str] = {}
    for path in glob.glob(os.path.join(glob.escape(directory), "global_step_*")):
        number = path.rsplit("_", 1)[-1]
        if number.isdigit():
            steps[int(number)] = path
    for step in sorted(steps, reverse=True):
        at = complete(steps[step])
        if at is None:
            continue
        saved = SavedStep(step, at)
        newest = newest or saved
        if began is None or at <= began:
            return newest, saved
    return newest, None


def times(directory: str) -> Tuple[Optional[float], Optional[float], Optional[float]]:
    """Return the attempt's submission, and its job's current start and end, in epoch seconds.

    Args:
        directory: The attempt's directory.
    """

    def recorded(name: str, key: str) -> Any:
        try:
            with open(os.path.join(directory, name)) as stream:
                return json.load(stream).get(key)
        except (OSError, ValueError, AttributeError):
            return None

    submitted = None
    for name in (attempt_dir.OWNER, attempt_dir.SETTINGS, attempt_dir.RAY_JOB):
        path = os.path.join(directory, name)
        if submitted is None and os.path.exists(path):
            submitted = os.stat(path).st_mtime
    ended = recorded(attempt_dir.OUTCOME, "ended")
    log = os.path.join(directory, attempt_dir.OUTPUT)
    if ended is None and os.path.exists(log):
        ended = os.stat(log).st_mtime
    # A Slurm job records its start at once (batch.sh.j2), a Ray job when it ends (ray_job.sh).
    started = recorded(attempt_dir.STARTED, "started") or recorded(attempt_dir.OUTCOME, "started")
    return submitted, started, ended


def space(directory: str) -> Tuple[Optional[int], Optional[int], str]:
    """Return free and total bytes of the file system, and the error of a small write if there is no space for it."""
    free: Optional[int] = None
    total: Optional[int] = None
    full = ""
    try:
        seen = os.statvfs(directory)
        free, total = seen.f_bavail * seen.f_frsize, seen.f_blocks * seen.f_frsize
        # A quota is visible only in a write: no number that all file systems provide includes it.
        with tempfile.TemporaryFile(dir=directory) as stream:
            stream.write(b"\0" * 65536)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = error.strerror or str(error)
    return free, total, full


def users(uids: Iterable[str]) -> Dict[str, str]:
    """Return the names of those user ids that have one."""
    names: Dict[str, str] = {}
    for uid in uids:
        with contextlib.suppress(KeyError, ValueError):
            names[str(uid)] = pwd.getpwuid(int(uid)).pw_name
    return names


def addresses(path: str) -> Dict[str, str]:
    """Return address -> name of a Ray cluster's nodes; empty if its ``cluster.json`` cannot be read."""
    try:
        with open(path) as stream:
            return {node["ip"]: node["name"] for node in json.load(stream)["nodes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def main(request: Dict[str, Any]) -> Any:
    """Scan the logs and collect the other evidence."""
    asked: EvidenceRequest = decode(EvidenceRequest, request)
    scan = Scan(asked.signatures, asked.max_bytes, time.time() + asked.seconds)
    found: List[LogMatch] = []
    for order, pattern in enumerate(asked.logs):
        for path in sorted(glob.glob(pattern)) or ([pattern] if os.path.exists(pattern) else []):
            try:
                found += scan.log(path, order)
            except OSError:
                continue
    names = addresses(asked.addresses) if asked.addresses else {}
    submitted, started, ended = times(asked.directory)
    newest, newest_before = checkpoints(asked.checkpoints, submitted) if asked.checkpoints else (None, None)
    place = asked.directory
    while not os.path.isdir(place) and len(place) > 1:
        place = os.path.dirname(place)
    free, total, full = space(place)
    return encode(
        EvidenceAnswer(
            found=[match._replace(node=names.get(match.node or "", match.node)) for match in found],
            unread=scan.unread,
            last_line=scan.last,
            newest=newest,
            newest_before=newest_before,
            submitted=submitted,
            started=started,
            ended=ended,
            free_bytes=free,
            total_bytes=total,
            full=full,
            users=users(asked.uids),
        )
    )
