"""Submit one batch job exactly once. Runs on the login node; request and answer are JSON on stdin/stdout.

Request:  {"directory": attempt directory, "key": job name, "files": {path: text}, "secrets": {name: text}}
Answer:   {"job_id": "12", "how": "submitted" | "found"}  or  {"error": "what squeue or sbatch said"}

A second call for the same directory, at any time and even while the first one runs, gives the same job.
With `key` null the files are put there and nothing is submitted (a Ray job's files): {"how": "placed"}.
Python 3.6 is enough; standard library only.
"""

import fcntl
import json
import os
import subprocess
import sys


def write(path, text, mode=0o600):
    """Create or replace a file in one step, never readable to others for a moment."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = path + ".tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def known_to_slurm(key):
    """The id of a job with this name, also when sbatch ran but its answer was never written down.

    Raises OSError when squeue cannot tell.
    """
    queries = (
        ["squeue", "--me", "-h", "-t", "all", "-o", "%i %r", "--name", key],
        # Accounting remembers longer than squeue's MinJobAge, but not every site has it.
        ["sacct", "-X", "-n", "-P", "-S", "now-30days", "-o", "JobID", "--name", key],
    )
    for query in queries:
        done = run(query)
        if query[0] == "squeue" and done.returncode:
            raise OSError(done.stderr.strip() or "squeue ended with exit code %d" % done.returncode)
        # sbatch refuses an impossible job, but slurmctld keeps a record of it under its name.
        rows = [line.split() for line in done.stdout.splitlines() if "BadConstraints" not in line]
        if done.returncode == 0 and rows:
            return rows[0][0]
    return None


def place(request):
    """Write the files of one attempt."""
    directory = request["directory"]
    for name, text in request["files"].items():
        write(os.path.join(directory, name), text)
    for name, text in request["secrets"].items():
        write(os.path.join(directory, "secrets", name), text)


def run(argv):
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


def submit(request):
    """Do what the module's docstring says and return the answer."""
    directory = request["directory"]
    os.makedirs(directory, mode=0o700, exist_ok=True)
    id_file = os.path.join(directory, "job_id")
    with open(os.path.join(directory, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(id_file):
            with open(id_file) as stream:
                return {"job_id": stream.read().strip(), "how": "found"}
        try:
            job_id, how = known_to_slurm(request["key"]), "found"
        except OSError as error:
            return {"error": str(error)}
        if job_id is None:
            place(request)
            done = run(
                [
                    "sbatch",
                    "--parsable",
                    "--job-name=" + request["key"],
                    "--comment=llm-bridge:" + request["key"],
                    "--output=" + os.path.join(directory, "output.log"),
                    "--chdir=" + directory,
                    os.path.join(directory, "script.sh"),
                ]
            )
            if done.returncode:
                return {"error": done.stderr.strip()}
            # "12" or, on a federation, "12;cluster"
            job_id, how = done.stdout.strip().split(";")[0], "submitted"
        write(id_file, job_id + "\n")
        return {"job_id": job_id, "how": how}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    if asked["key"] is None:
        place(asked)
        print(json.dumps({"how": "placed"}))
    else:
        print(json.dumps(submit(asked)))
