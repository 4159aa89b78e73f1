"""The job ids of all attempts of one stage. Runs on the login node; JSON on stdin/stdout.

Request:  {"directory": stage directory}
Answer:   {"jobs": [{"job_id": "12", "directory": attempt directory}]}, oldest attempt first
"""

import glob
import json
import os
import sys


def number(path):
    """The N of `attempt-N`."""
    tail = path.rstrip("/").rsplit("-", 1)[-1]
    return int(tail) if tail.isdigit() else 0


def attempts(directory):
    """Every attempt below `directory` that has a job id."""
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(directory), "attempt-*")), key=number):
        try:
            with open(os.path.join(path, "job_id")) as stream:
                found.append({"job_id": stream.read().strip(), "directory": path})
        except FileNotFoundError:
            continue
    return found


if __name__ == "__main__":
    print(json.dumps({"jobs": attempts(json.load(sys.stdin)["directory"])}))
