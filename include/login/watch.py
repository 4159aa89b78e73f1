"""Read what is new of many jobs in one go, again and again. Stays on the login node; asks nothing of slurmctld.

Each further line of standard input is a request; each answer is 8 digits with its length, and so many bytes of JSON.

Request:  {"jobs": {id: {"directory", "files": [names], "log": null or {"offset", "max_bytes", "room", "final"},
          "note": null or {"follower", "try", "offset", ...}, "claim": bool}}}
Answer:   {"jobs": {id: {"files": {name: content}, "log": base64, "offset": of its first byte, "skipped": bytes,
          "more": bool, "size": of the whole log, null where it was not asked for,
          "held": note of an earlier follower, "taken": bool}}}

`files` are small JSON files that may not exist yet. `log` brings whole lines, at most `max_bytes`; where more than
`room` bytes wait, it goes on near the end and says how much it skipped. `note` is who follows the job's output and how
far: it is kept beside the log (follower.TRY.json), so that a follower for the same try of a task that comes after a
crash knows where to go on (`claim`), and the one before it learns that it is not followed here any more (`taken`).
"""

import base64
import json
import os
import sys
import time

# Where a flood is cut short, so much of its end is shown.
SHOWN_AFTER_SKIP = 32 * 1024
# A note that only moves on is written this often.
NOTE_SECONDS = 3


def whole_lines(data, force):
    """`data` up to its last line end; with `force` whole if it has none, but never ending within a character."""
    end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
    if end or not force:
        return data[:end]
    back = 1
    while back < 4 and back < len(data) and data[-back] & 0xC0 == 0x80:
        back += 1
    # The last character's first byte is at -back; 0b11xxxxxx means that it has more than one byte.
    return data[:-back] if data and data[-back] >= 0xC0 and len(data) > back else data


def new_log(path, asked):
    """The next part of the log: (bytes, offset of the first, skipped, whether more waits, size)."""
    offset = asked["offset"]
    if not os.path.exists(path):
        return b"", offset, 0, False, 0
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        skipped = 0
        if size - offset > asked["room"]:
            stream.seek(size - SHOWN_AFTER_SKIP)
            start = size - SHOWN_AFTER_SKIP + len(stream.readline(SHOWN_AFTER_SKIP))
            skipped, offset = start - offset, start
        stream.seek(offset)
        data = stream.read(asked["max_bytes"])
        at_end = offset + len(data) >= size
        if not (at_end and asked["final"]):
            data = whole_lines(data, force=not at_end)
    return data, offset, skipped, not at_end, size


def json_file(path):
    """The file's content, or None while it is not there."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (FileNotFoundError, ValueError):
        return None


def keep(path, note):
    """Write the note in one step."""
    with open(path + ".tmp", "w", encoding="utf-8") as stream:
        json.dump(note, stream)
    os.replace(path + ".tmp", path)


def look(job):
    """What is new of one job."""
    directory, note = job["directory"], job["note"]
    seen = {"log": "", "offset": 0, "skipped": 0, "more": False, "size": None, "held": None, "taken": False}
    seen["files"] = {name: json_file(os.path.join(directory, name)) for name in job["files"]}
    if note:
        path = os.path.join(directory, "follower.%s.json" % note["try"])
        seen["held"] = held = json_file(path)
        if job["claim"]:
            # What is known of the way so far stays until the new follower has found out for itself.
            keep(path, dict(held or note, follower=note["follower"]))
            return seen
        if held and held["follower"] != note["follower"]:
            seen["taken"] = True
            return seen
        if held != note and time.time() - os.stat(path).st_mtime > NOTE_SECONDS:
            keep(path, note)
    if job["log"]:
        data, seen["offset"], seen["skipped"], seen["more"], seen["size"] = new_log(
            os.path.join(directory, "output.log"), job["log"]
        )
        seen["log"] = base64.b64encode(data).decode("ascii")
    return seen


def main(request):
    """Entry point (boot.py): answer line by line until standard input ends."""
    output = sys.stdout.buffer
    for line in sys.stdin:
        jobs = json.loads(line)["jobs"]
        answer = json.dumps({"jobs": {i: look(job) for i, job in jobs.items()}}).encode()
        output.write(b"%08d" % len(answer) + answer)
        output.flush()
