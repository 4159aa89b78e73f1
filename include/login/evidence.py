"""Read what tells why a job failed: logs, checkpoints, free space.

Request:  {"directory": the attempt's, "logs": [paths or patterns, the most telling first], "signatures": [{"id",
          "seen", "words": texts of which a line has at least one, or null}], "checkpoints": directory or null,
          "addresses": cluster.json of a Ray cluster or null, "max_bytes", "seconds", "uids": [user ids]}
Answer:   {"found": [{"id", "file", "line": number or null, "text", "node", "order"}], "unread": bytes,
          "last": the last line of the first log that is not empty,
          "checkpoints": {"now": {"step", "at"} or null, "before": the same, as the attempt began},
          "times": {"submitted", "started", "ended"}, "space": {"free", "total", "full": text}, "users": {uid: name}}

Of each signature the first match in each log counts, in the job's present life: Slurm may have run it before in the
same directory (requeue), with its output in the same file. A log that is longer than `max_bytes` is read at its
beginning and its end. `order` is the place of the log in the request. Nothing that looks like a token leaves the
cluster.

Asks nothing of slurmctld. Python 3.6 is enough, as for all helpers; standard library only.
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

LONGEST_LINE = 2000
LONGEST_TEXT = 400
# Of a log that is too long, so much of its beginning.
HEAD_SHARE = 8
# What a batch script prints first (batch.sh.j2).
LIFE_WORD = b"[llm-bridge] llmb-"
LIFE = re.compile(r"^\[llm-bridge\] llmb-\S+: Slurm job \d+ on ")
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# srun --label, Ray (name, process and where it runs), torchrun and torch; in this order.
PREFIX = re.compile(
    r"^(\s*\d+: )?(\([\w.<>:-]+( pid=\d+)?(, ip=(?P<ip>[\d.]+))?\) ?)?(\[rank\d+\]: ?|\[default\d+\]: ?)?"
)
SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+|\b[0-9a-f]{40,}\b|(?<=key=)\S{16,}")
KINDS = ("model", "optim", "extra_state")


def bare(line):
    """A line without colours and without who says it."""
    line = COLOUR.sub("", line).rstrip()
    # A progress bar's carriage returns: what stands last is what is seen.
    line = line.rsplit("\r", 1)[-1]
    return line[PREFIX.match(line).end() :]


def speaker(line):
    """The address of the Ray node that a line comes from, if it says so."""
    return PREFIX.match(COLOUR.sub("", line)).group("ip")


class Scan:
    """Looks for signatures in logs, within limits."""

    def __init__(self, signatures, max_bytes, until):
        self.signatures = [(s["id"], re.compile(s["seen"])) for s in signatures]
        # Regular expressions are slow (1 MiB/s for all of them): a line without these words is passed over.
        words = [s["words"] for s in signatures]
        self.words = [word.encode() for some in words for word in some] if all(words) else [b""]
        self.words.append(LIFE_WORD)
        self.max_bytes, self.until = max_bytes, until
        self.unread = 0
        self.last = ""

    def log(self, path, order):
        """The first match of each signature in one log."""
        found, last = {}, b""
        for number, raw, words in self.lines(path):
            if raw.strip():
                last = raw
            if not any(word in raw for word in words):
                continue
            line = raw.decode("utf-8", "replace")[-LONGEST_LINE:]
            if LIFE.match(line):
                found = {}
            text = bare(line)
            for name, seen in self.signatures:
                match = None if name in found else seen.search(text)
                if match:
                    found[name] = {
                        "id": name,
                        "file": path,
                        "line": number,
                        "text": SECRET.sub("[secret]", text)[:LONGEST_TEXT],
                        "node": match.groupdict().get("node") or speaker(line),
                        "order": order,
                    }
        text = bare(last[-LONGEST_LINE:].decode("utf-8", "replace"))
        self.last = self.last or SECRET.sub("[secret]", text)[:LONGEST_TEXT]
        return list(found.values())

    def lines(self, path):
        """(number or None, line, words that it may have) of a log, or of its beginning and end."""
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            number, head = 0, self.max_bytes // HEAD_SHARE
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


def complete(checkpoint):
    """When a checkpoint of verl's was finished (epoch seconds), or None if it lacks something.

    As include/jobs/checkpoints.py, without knowing what the recipe saves: of each kind of shard that is there, all
    processes' must be, and whole; the place in the data must be there.
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
        for kind in KINDS:
            shards = ["%s_world_size_%d_rank_%d.pt" % (kind, processes, rank) for rank in range(processes)]
            there = [os.path.join(part, name) for name in shards if name in names]
            if (kind == "model" or there) and len(there) < processes:
                return None
            if not all(zipfile.is_zipfile(path) for path in there):
                return None
            newest = max([newest] + [os.stat(path).st_mtime for path in there])
    return newest if positions else None


def checkpoints(directory, began):
    """The newest complete checkpoint now, and as the attempt began."""
    found = {"now": None, "before": None}
    steps = {}
    for path in glob.glob(os.path.join(glob.escape(directory), "global_step_*")):
        number = path.rsplit("_", 1)[-1]
        if number.isdigit():
            steps[int(number)] = path
    for step in sorted(steps, reverse=True):
        at = complete(steps[step])
        if at is None:
            continue
        found["now"] = found["now"] or {"step": step, "at": at}
        if began is None or at <= began:
            found["before"] = {"step": step, "at": at}
            break
    return found


def times(directory):
    """When the attempt was submitted, and when its present life started and ended, by the file system's clock."""

    def told(name, key):
        try:
            with open(os.path.join(directory, name)) as stream:
                return json.load(stream).get(key)
        except (OSError, ValueError, AttributeError):
            return None

    submitted = None
    for name in ("owner.json", "settings.json", "jobs"):
        path = os.path.join(directory, name)
        if submitted is None and os.path.exists(path):
            submitted = os.stat(path).st_mtime
    ended = told("outcome.json", "ended")
    log = os.path.join(directory, "output.log")
    if ended is None and os.path.exists(log):
        ended = os.stat(log).st_mtime
    # A Slurm job says at once when it started (batch.sh.j2), a Ray job as it ends (ray_job.sh).
    started = told("started.json", "started") or told("outcome.json", "started")
    return {"submitted": submitted, "started": started, "ended": ended}


def space(directory):
    """Free and total bytes of the file system, and what a small write is refused with."""
    answer = {"free": None, "total": None, "full": ""}
    try:
        seen = os.statvfs(directory)
        answer["free"], answer["total"] = seen.f_bavail * seen.f_frsize, seen.f_blocks * seen.f_frsize
        # A quota shows in no number that all file systems have in common.
        with tempfile.TemporaryFile(dir=directory) as stream:
            stream.write(b"\0" * 65536)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            answer["full"] = error.strerror
    return answer


def users(uids):
    """Names of user ids, of those that have one."""
    names = {}
    for uid in uids:
        with contextlib.suppress(KeyError, ValueError):
            names[str(uid)] = pwd.getpwuid(int(uid)).pw_name
    return names


def addresses(path):
    """Address -> name of the nodes of a Ray cluster."""
    try:
        with open(path) as stream:
            return {node["ip"]: node["name"] for node in json.load(stream)["nodes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def main(request):
    """Entry point (boot.py)."""
    scan = Scan(request["signatures"], request["max_bytes"], time.time() + request["seconds"])
    found = []
    for order, pattern in enumerate(request["logs"]):
        for path in sorted(glob.glob(pattern)) or ([pattern] if os.path.exists(pattern) else []):
            try:
                found += scan.log(path, order)
            except OSError:
                continue
    names = addresses(request["addresses"]) if request["addresses"] else {}
    for match in found:
        match["node"] = names.get(match["node"], match["node"])
    known = times(request["directory"])
    saved = {"now": None, "before": None}
    if request["checkpoints"]:
        saved = checkpoints(request["checkpoints"], known["submitted"])
    place = request["directory"]
    while not os.path.isdir(place) and len(place) > 1:
        place = os.path.dirname(place)
    return {
        "found": found,
        "unread": scan.unread,
        "last": scan.last,
        "checkpoints": saved,
        "times": known,
        "space": space(place),
        "users": users(request["uids"]),
    }
