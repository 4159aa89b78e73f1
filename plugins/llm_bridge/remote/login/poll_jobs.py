"""Read new output and files of many jobs per request. Keeps running on the login node and never calls slurmctld.

Each further line of standard input is a PollRequest (``remote/messages.py``). Each answer is a PollAnswer after its
length in bytes as 8 digits.

A follower's lease is kept beside the log (``attempt_dir.log_lease``). After a crash, the next follower for the same try
of a task resumes at the lease's offset, and the previous one finds that it has lost the lease.
"""

import base64
import json
import os
import sys
import time
from typing import Any, Dict, List, Tuple

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.messages import (
    JobNews,
    JobQuery,
    LogQuery,
    Measures,
    PollAnswer,
    PollRequest,
    decode,
    encode,
)

# Bytes at the end of a log that are still returned when a backlog is skipped.
MAX_BYTES_AFTER_SKIP = 32 * 1024
# Bytes of measures in one answer about a job.
MAX_MEASURES_BYTES = 128 * 1024
# Minimum seconds between two updates of a lease of which only the offset has changed.
LEASE_UPDATE_SECONDS = 3


def whole_lines(data: bytes, force: bool) -> bytes:
    """Return the whole lines at the beginning of a part of a log.

    Args:
        data: Bytes in UTF-8.
        force: Return ``data`` also if it has no line end, without an incomplete character at its end.
    """
    end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    if end or not force:
        return data[:end]
    back = 1
    while back < 4 and back < len(data) and data[-back] & 0xC0 == 0x80:
        back += 1
    # The last character's first byte is at -back; 0b11xxxxxx means that it has more than one byte.
    return data[:-back] if data and data[-back] >= 0xC0 and len(data) > back else data


def read_log(path: str, asked: LogQuery) -> Tuple[bytes, int, int, bool, int]:
    """Read the next part of a log.

    Args:
        path: The log, which may not exist yet.
        asked: The part to read.

    Returns:
        The part; its offset in bytes; the number of bytes skipped before it; true if more can be read; the log's size.
    """
    offset = asked.offset
    if not os.path.exists(path):
        return b"", offset, 0, False, 0
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        skipped = 0
        if size - offset > asked.max_backlog:
            stream.seek(size - MAX_BYTES_AFTER_SKIP)
            start = size - MAX_BYTES_AFTER_SKIP + len(stream.readline(MAX_BYTES_AFTER_SKIP))
            skipped, offset = start - offset, start
        stream.seek(offset)
        data = stream.read(asked.max_bytes)
        at_end = offset + len(data) >= size
        if not (at_end and asked.final):
            data = whole_lines(data, force=not at_end)
    return data, offset, skipped, not at_end, size


def write_lease(path: str, lease: Dict[str, Any]) -> None:
    """Write a lease; without one in a workspace that cannot be written, a later follower repeats lines."""
    try:
        attempt_dir.write_json(path, lease)
    except OSError as error:
        if error.errno not in attempt_dir.NOT_WRITABLE:
            raise


def measured_files(directory: str) -> List[str]:
    """Return the names of an attempt's files with measures, those of the training first."""
    try:
        nodes = sorted(os.listdir(os.path.join(directory, attempt_dir.GPU_USE)))
    except OSError:
        nodes = []
    names = [attempt_dir.GPU_USE + "/" + name for name in nodes if name.endswith(attempt_dir.LINES_SUFFIX)]
    return [attempt_dir.METRICS, *names]


def read_measures(directory: str, offsets: Dict[str, int]) -> Tuple[Dict[str, Measures], bool]:
    """Read new whole lines of an attempt's files with measures.

    Args:
        directory: The attempt's directory.
        offsets: File -> offset from which to read; others are read from their beginning.

    Returns:
        File -> the new lines; true if more can be read.
    """
    left, more = MAX_MEASURES_BYTES, False
    found: Dict[str, Measures] = {}
    for name in measured_files(directory):
        start = offsets.get(name, 0)
        try:
            with open(os.path.join(directory, name), "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                truncated = size < start
                start = 0 if truncated else start
                if size == start and not truncated:
                    continue
                if left <= 0:
                    return found, True
                stream.seek(start)
                data = stream.read(left)
        except (FileNotFoundError, NotADirectoryError):
            continue
        is_cut = start + len(data) < size
        end = data.rfind(b"\n") + 1
        if not end and is_cut and len(data) == MAX_MEASURES_BYTES:
            data, end = b"", len(data)  # no line is that long: skip what some program has written there
        whole = data[:end]
        left -= len(data)
        more = more or (is_cut and end > 0)
        if end or truncated:
            found[name] = Measures(whole.decode("utf-8", "replace"), start + end)
    return found, more


def poll(job: JobQuery) -> JobNews:
    """Answer the query for one job."""
    directory, lease = job.directory, job.lease
    if job.over:
        attempt_dir.remove_secrets(directory)
    files = {name: attempt_dir.read_json(os.path.join(directory, name)) for name in job.files}
    news = JobNews(job.id, files)
    if lease:
        path = os.path.join(directory, attempt_dir.log_lease(lease["try"]))
        current = attempt_dir.read_json(path)
        news = news._replace(current_lease=current)
        if job.acquire:
            # Keep the offset until the new follower has determined its own, unless its log is empty now.
            kept = lease if lease.get("truncated") else current or lease
            write_lease(path, dict(kept, follower=lease["follower"]))
            return news
        if current and current["follower"] != lease["follower"]:
            return news._replace(lease_lost=True)
        if current != lease and (not current or time.time() - os.stat(path).st_mtime > LEASE_UPDATE_SECONDS):
            write_lease(path, lease)
    if job.log:
        data, offset, skipped, more, size = read_log(os.path.join(directory, attempt_dir.OUTPUT), job.log)
        text = base64.b64encode(data).decode("ascii")
        news = news._replace(log=text, offset=offset, skipped=skipped, more=more, size=size)
    if job.measures is not None:
        found, more = read_measures(directory, job.measures)
        news = news._replace(measures={name: list(part) for name, part in found.items()}, more_measures=more)
    return news


def main(request: Dict[str, Any]) -> None:
    """Answer each line of standard input until it ends."""
    output = sys.stdout.buffer
    for line in sys.stdin:
        asked = decode(PollRequest, json.loads(line))
        answer = json.dumps(encode(PollAnswer([poll(job) for job in asked.jobs]))).encode()
        output.write(b"%08d" % len(answer) + answer)
        output.flush()
