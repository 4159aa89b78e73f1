"""Submit one batch job exactly once.

Request:  {"directory": attempt directory, "key": job name, "owner": {...}, "files": {path: text},
          "secrets": {name: text}, "stage": null or see done.py, "budget": see rpc.py}
Answer:   {"how": "submitted" | "found", "job_id": "12", "goes_on", "aside": see done.py}
          or  {"how": "done", ...see done.py}: nothing to submit, the stage's result is there
          or  {"how": "closed"}: a later try has given this attempt up
          or  {"error": "what squeue or sbatch said"}

A second call for the same directory, at any time and even while the first one runs, gives the same job. The file
`job_id` decides which one that is; whoever links it first wins, this helper or the job itself as it starts
(batch.sh.j2), so that a job which slurmctld made twice, or whose id nobody read, is not two.
With `key` null the files are put there and nothing is submitted (a Ray job's files): {"how": "placed"}.
"""

import contextlib
import fcntl
import json
import os

import done
import files
import rpc


def known_to_slurm(key, budget, old=True):
    """The id of a job with this name, also when sbatch ran but its answer was never written down.

    `old`: also a job that slurmctld has forgotten. Raises OSError when squeue cannot tell.
    """
    queries = [["squeue", "--me", "-h", "-t", "all", "-o", "%i %r", "--name", key]]
    if old:  # accounting remembers longer than squeue's MinJobAge, but not every site has it
        queries.append(["sacct", "-X", "-n", "-P", "-S", "now-30days", "-o", "JobID", "--name", key])
    for query in queries:
        ended = rpc.run(query, budget)
        if query[0] == "squeue" and ended.returncode:
            raise OSError(ended.stderr.strip() or "squeue ended with exit code %d" % ended.returncode)
        # sbatch refuses an impossible job, but slurmctld keeps a record of it under its name.
        rows = [line.split() for line in ended.stdout.splitlines() if "BadConstraints" not in line]
        if ended.returncode == 0 and rows:
            return min((row[0] for row in rows), key=lambda job_id: (len(job_id), job_id))
    return None


def place(request):
    """Write the files of one attempt."""
    directory = request["directory"]
    for name, text in request["files"].items():
        files.write(os.path.join(directory, name), text)
    for name, text in request["secrets"].items():
        files.write(os.path.join(directory, "secrets", name), text)


def claim(directory, job_id):
    """Make `job_id` the attempt's job unless it has one; returns the one it has."""
    mine = os.path.join(directory, "job_id." + job_id)
    files.write(mine, job_id + "\n")
    with contextlib.suppress(FileExistsError):
        os.link(mine, os.path.join(directory, "job_id"))
    os.unlink(mine)
    return files.read(os.path.join(directory, "job_id"))


def submit(request):
    """Do what the module's docstring says and return the answer."""
    directory, budget = request["directory"], request["budget"]
    os.makedirs(directory, mode=0o700, exist_ok=True)
    lock_file = os.path.join(directory, "lock")
    again = os.path.exists(lock_file)
    with open(lock_file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(os.path.join(directory, "closed")):
            return {"how": "closed"}
        job_id = files.read(os.path.join(directory, "job_id"))
        if job_id:
            return {"job_id": job_id, "how": "found"}
        try:
            job_id = known_to_slurm(request["key"], budget, old=again)
        except OSError as error:
            return {"error": str(error)}
        if job_id:
            return {"job_id": claim(directory, job_id), "how": "found"}
        stage = request["stage"]
        result = stage and done.finished(os.path.dirname(directory), stage)
        if result:
            return dict(result, how="done")
        place(request)
        begun = done.begin(directory, stage) if stage else {}
        files.write(
            os.path.join(directory, "owner.json"), json.dumps(dict(request["owner"], key=request["key"]))
        )
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
        ended = rpc.run(argv, budget, pass_fds=(lock.fileno(),))
        if ended.returncode:
            return {"error": ended.stderr.strip()}
        # "12" or, on a federation, "12;cluster"
        submitted = ended.stdout.strip().split(";")[0]
        job_id = claim(directory, submitted)
        if job_id != submitted:
            rpc.run(["scancel", submitted], budget)
        return dict(begun, job_id=job_id, how="submitted")


def main(request):
    """Entry point (boot.py)."""
    if request["key"] is None:
        place(request)
        begun = done.begin(request["directory"], request["stage"]) if request["stage"] else {}
        return dict(begun, how="placed")
    try:
        return submit(request)
    except rpc.RationUsedUp as error:
        return {"error": str(error)}
