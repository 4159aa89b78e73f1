"""The jobs of all attempts of one stage.

Request:  {"directory": stage directory, "close": bool, "budget": see rpc.py}
Answer:   {"jobs": [{"job_id": "12", "directory": attempt directory}]}, oldest attempt first; or {"error": text}

With `close` none of these attempts can get a job any more: a submission that hangs somewhere on its way, or that a
worker cut off from Airflow still wants to make, finds the attempt closed (submit.py, batch.sh.j2).
"""

import fcntl
import glob
import json
import os

import files
import rpc
import submit


def number(path):
    """The N of `attempt-N`."""
    tail = path.rstrip("/").rsplit("-", 1)[-1]
    return int(tail) if tail.isdigit() else 0


def close(path, budget):
    """Close one attempt; gives its job's id its file if only Slurm knows it."""
    with open(os.path.join(path, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        owner = files.read(os.path.join(path, "owner.json"))
        if owner and not os.path.exists(os.path.join(path, "job_id")):
            job_id = submit.known_to_slurm(json.loads(owner)["key"], budget)
            if job_id:
                submit.claim(path, job_id)
        files.write(os.path.join(path, "closed"), "")


def main(request):
    """Entry point (boot.py)."""
    found = []
    pattern = os.path.join(glob.escape(request["directory"]), "attempt-*")
    for path in sorted(glob.glob(pattern), key=number):
        if request["close"]:
            try:
                close(path, request["budget"])
            except (OSError, rpc.RationUsedUp) as error:
                return {"error": str(error)}
        job_id = files.read(os.path.join(path, "job_id"))
        if job_id:
            found.append({"job_id": job_id, "directory": path})
    return {"jobs": found}
