"""Read what is new of many jobs in one go. Runs on the login node; JSON on stdin/stdout.

Request:  {"jobs": {id: {"directory", "offset", "files": [names]}}, "max_bytes": bytes of log for each job}
Answer:   {"jobs": {id: {"log": base64, "offset": where to go on, "size", "files": {name: content}}}}

`files` are small JSON files that may not exist yet. Python 3.6 is enough; standard library only.
"""

import base64
import json
import os
import sys


def new_log(path, offset, max_bytes):
    """Bytes of the file from `offset` on, at most `max_bytes`, and the file's size."""
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(offset)
            return stream.read(max_bytes), size
    except FileNotFoundError:
        return b"", 0


def json_file(path):
    """The file's content, or None while it is not there."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (FileNotFoundError, ValueError):
        return None


def look(job, max_bytes):
    """What is new of one job."""
    data, size = new_log(os.path.join(job["directory"], "output.log"), job["offset"], max_bytes)
    return {
        "log": base64.b64encode(data).decode("ascii"),
        "offset": job["offset"] + len(data),
        "size": size,
        "files": {name: json_file(os.path.join(job["directory"], name)) for name in job["files"]},
    }


if __name__ == "__main__":
    request = json.load(sys.stdin)
    print(json.dumps({"jobs": {i: look(job, request["max_bytes"]) for i, job in request["jobs"].items()}}))
