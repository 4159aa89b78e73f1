"""Submit one batch job exactly once.

Request:  {"directory": attempt directory, "key": job name, "owner": {...}, "files": {path: text},
          "secrets": {name: text}, "budget": see rpc.py}
Answer:   {"job_id": "12", "how": "submitted" | "found"}  or  {"error": "what squeue or sbatch said"}
          or  {"closed": true}: a later try has given this attempt up

A second call for the same directory, at any time and even while the first one runs, gives the same job. The file
`job_id` decides which one that is; whoever links it first wins, this helper or the job itself as it starts
(batch.sh.j2), so that a job which slurmctld made twice, or whose id nobody read, is not two.
With `key` null the files are put there and nothing is submitted (a Ray job's files): {"how": "placed"}.
"""

import contextlib
import fcntl
import json
import os

import rpc


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


def read(path):
    """A small file's text without the line end, or None."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read().strip()
    except FileNotFoundError:
        return None


def known_to_slurm(key, budget, old=True):
    """The id of a job with this name, also when sbatch ran but its answer was never written down.

    `old`: also a job that slurmctld has forgotten. Raises OSError when squeue cannot tell.
    """
    queries = [["squeue", "--me", "-h", "-t", "all", "-o", "%i %r", "--name", key]]
    if old:  # accounting remembers longer than squeue's MinJobAge, but not every site has it
        queries.append(["sacct", "-X", "-n", "-P", "-S", "now-30days", "-o", "JobID", "--name", key])
    for query in queries:
        done = rpc.run(query, budget)
        if query[0] == "squeue" and done.returncode:
            raise OSError(done.stderr.strip() or "squeue ended with exit code %d" % done.returncode)
        # sbatch refuses an impossible job, but slurmctld keeps a record of it under its name.
        rows = [line.split() for line in done.stdout.splitlines() if "BadConstraints" not in line]
        if done.returncode == 0 and rows:
            return min((row[0] for row in rows), key=lambda job_id: (len(job_id), job_id))
    return None


def place(request):
    """Write the files of one attempt."""
    directory = request["directory"]
    for name, text in request["files"].items():
        write(os.path.join(directory, name), text)
    for name, text in request["secrets"].items():
        write(os.path.join(directory, "secrets", name), text)


def claim(directory, job_id):
    """Make `job_id` the attempt's job unless it has one; returns the one it has."""
    mine = os.path.join(directory, "job_id." + job_id)
    write(mine, job_id + "\n")
    with contextlib.suppress(FileExistsError):
        os.link(mine, os.path.join(directory, "job_id"))
    os.unlink(mine)
    return read(os.path.join(directory, "job_id"))


def submit(request):
    """Do what the module's docstring says and return the answer."""
    directory, budget = request["directory"], request["budget"]
    os.makedirs(directory, mode=0o700, exist_ok=True)
    lock_file = os.path.join(directory, "lock")
    again = os.path.exists(lock_file)
    with open(lock_file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(os.path.join(directory, "closed")):
            return {"closed": True}
        job_id = read(os.path.join(directory, "job_id"))
        if job_id:
            return {"job_id": job_id, "how": "found"}
        try:
            job_id = known_to_slurm(request["key"], budget, old=again)
        except OSError as error:
            return {"error": str(error)}
        if job_id:
            return {"job_id": claim(directory, job_id), "how": "found"}
        place(request)
        write(os.path.join(directory, "owner.json"), json.dumps(dict(request["owner"], key=request["key"])))
        argv = [
            "sbatch",
            "--parsable",
            "--job-name=" + request["key"],
            "--comment=llm-bridge:" + request["key"],
            "--output=" + os.path.join(directory, "output.log"),
            "--chdir=" + directory,
            os.path.join(directory, "script.sh"),
        ]
        # sbatch holds the lock too: if this process is killed, the next one waits until sbatch has ended.
        done = rpc.run(argv, budget, pass_fds=(lock.fileno(),))
        if done.returncode:
            return {"error": done.stderr.strip()}
        # "12" or, on a federation, "12;cluster"
        submitted = done.stdout.strip().split(";")[0]
        job_id = claim(directory, submitted)
        if job_id != submitted:
            rpc.run(["scancel", submitted], budget)
        return {"job_id": job_id, "how": "submitted"}


def main(request):
    """Entry point (boot.py)."""
    if request["key"] is None:
        place(request)
        return {"how": "placed"}
    try:
        return submit(request)
    except rpc.RationUsedUp as error:
        return {"error": str(error)}
