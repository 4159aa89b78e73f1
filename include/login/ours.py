"""Jobs of llm-bridge that wait or run, and whose they are.

Request:  {"workspace", "note": [attempt directories], "budget": see rpc.py}
Answer:   {"jobs": [{"job_id", "state", "directory", "owner": {...}, "noted": seconds ago or null}]} or {"error": text}

A job is ours when it runs in an attempt's directory of this workspace and bears the name that is written there
(owner.json, by submit.py). `note` marks attempts as seen without a run, for the next call to tell (`noted`).
"""

import json
import os
import time

import files
import rpc

MARK = "orphan"


def ours(workspace, job_id, name, directory, state):
    """One row of squeue, if it is a job of ours."""
    if not directory.startswith(workspace.rstrip("/") + "/"):
        return None
    text = files.read(os.path.join(directory, "owner.json"))
    owner = json.loads(text) if text else {}
    if owner.get("key") != name:
        return None
    mark = os.path.join(directory, MARK)
    noted = time.time() - os.stat(mark).st_mtime if os.path.exists(mark) else None
    return {"job_id": job_id, "state": state, "directory": directory, "owner": owner, "noted": noted}


def main(request):
    """Entry point (boot.py)."""
    for directory in request["note"]:
        files.write(os.path.join(directory, MARK), "")
    try:
        done = rpc.run(["squeue", "--me", "-h", "-o", "%i|%j|%T|%Z"], request["budget"])
    except rpc.RationUsedUp as error:
        return {"error": str(error)}
    if done.returncode:
        return {"error": done.stderr.strip()}
    rows = (line.split("|", 3) for line in done.stdout.splitlines() if "|llmb-" in line)
    jobs = (ours(request["workspace"], i, name, directory, state) for i, name, state, directory in rows)
    return {"jobs": [job for job in jobs if job]}
