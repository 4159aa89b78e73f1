"""Submit one batch job exactly once.

Takes a SubmitRequest and returns a SubmitAnswer (``remote/messages.py``).

A second call for the same directory returns the same job, at any time and even while the first call runs. The file
JOB_ID decides which job that is: the first process to create it wins, this helper or the job itself as it starts
(batch.sh.j2). A job that slurmctld created twice, or whose id was never read, therefore does not run twice.
"""

import base64
import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
from typing import Any, Dict, List, Optional

from llm_bridge.remote import attempt_dir, messages
from llm_bridge.remote.attempt_dir import Owner
from llm_bridge.remote.login import slurm_command, stage_result
from llm_bridge.remote.messages import RateBudget, SubmitAnswer, SubmitRequest, decode, encode

# Maximum number of characters of sbatch's output to quote.
MAX_QUOTED_LENGTH = 500
# Errors of link() on file systems that have no hard links.
NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL)


def find_by_name(key: str, budget: Optional[RateBudget], ended: bool = True) -> Optional[str]:
    """Return the id of the job with a name: sbatch may have created it although its answer was never stored.

    Args:
        key: The job's name.
        budget: The site's rate limit, if it has one.
        ended: Also ask accounting, for a job that slurmctld has forgotten.

    Returns:
        The smallest id; None without such a job.

    Raises:
        OSError: squeue failed.
        RateLimitExceeded: The rate limit allows no call.
    """
    queries = [["squeue", "--me", "-h", "-t", "all", "-o", "%i|%r|%j", "--name", key]]
    if ended:  # accounting keeps jobs longer than slurmctld (MinJobAge), but not every site has it
        queries.append(["sacct", "-X", "-n", "-P", "-S", "now-30days", "-o", "JobIDRaw,Reason,JobName"])
        queries[-1] += ["--name", key]
    for query in queries:
        done = slurm_command.run(query, budget)
        if query[0] == "squeue" and done.returncode:
            raise OSError(done.stderr.strip() or "squeue ended with exit code %d" % done.returncode)
        rows = [line.split("|") for line in done.stdout.splitlines() if line.endswith("|" + key)]
        # sbatch refuses an impossible job, but slurmctld keeps a record of it under its name.
        found = [attempt_dir.job_id_in(row[0]) for row in rows if row[1] != "BadConstraints"]
        ids = [job_id for job_id in found if job_id]
        if done.returncode == 0 and ids:
            return min(ids, key=int)
    return None


def put_files(request: SubmitRequest) -> None:
    """Write the files and secrets of an attempt."""
    for name, text in request.files.items():
        attempt_dir.write(os.path.join(request.directory, name), text)
    for name, data in request.binaries.items():
        attempt_dir.write_bytes(os.path.join(request.directory, name), base64.b64decode(data))
    for name, text in request.secrets.items():
        attempt_dir.write(os.path.join(request.directory, attempt_dir.SECRETS, name), text)


def claim(directory: str, job_id: str) -> str:
    """Record a job as the attempt's, unless it has one.

    Args:
        directory: The attempt's directory.
        job_id: The job's id.

    Returns:
        The id of the attempt's job.

    Raises:
        OSError: The files cannot be written, or they exist and hold no id.
    """
    mine = os.path.join(directory, "%s.%s" % (attempt_dir.JOB_ID, job_id))
    attempt_dir.write(mine, job_id + "\n")
    for name in attempt_dir.JOB_ID_CLAIMS:
        if not attempt_dir.job_of(directory):
            try:
                os.link(mine, os.path.join(directory, name))
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                claim_without_links(os.path.join(directory, name), mine)
    os.unlink(mine)
    claimed = attempt_dir.job_of(directory)
    if not claimed:
        names = " nor ".join(attempt_dir.JOB_ID_CLAIMS)
        raise OSError("neither %s in %s holds a Slurm job id: remove both" % (names, directory))
    return claimed


def claim_without_links(claim: str, mine: str) -> None:
    """Make ``claim`` hold the id in the file ``mine``, unless another process is first, in the same way as batch.sh.j2.

    Args:
        claim: Path of the claim.
        mine: File with the job's id.
    """
    own, decided = mine + ".d", claim + attempt_dir.CLAIM_FOLDER_SUFFIX
    os.makedirs(own, exist_ok=True)
    attempt_dir.write(os.path.join(own, attempt_dir.JOB_ID), attempt_dir.read(mine) or "")
    try:
        os.rename(own, decided)
    except OSError:  # another process was first
        shutil.rmtree(own, ignore_errors=True)
    first = attempt_dir.read(os.path.join(decided, attempt_dir.JOB_ID))
    if first and not os.path.exists(claim):
        attempt_dir.write(claim, first)


def sbatch(request: SubmitRequest) -> List[str]:
    """Return the sbatch call for an attempt, without its script."""
    return [
        "sbatch",
        "--parsable",
        "--job-name=%s" % request.key,
        "--comment=llm-bridge:%s" % request.key,
        "--output=" + os.path.join(request.directory, attempt_dir.OUTPUT),
        "--chdir=" + request.directory,
    ]


def still_running(attempts: List[str]) -> str:
    """Return which attempts' processes still run, as a sentence; empty if none do.

    These attempts are closed, so that the processes end themselves as soon as they see that (batch.sh.j2).

    Args:
        attempts: Directories of attempts whose jobs Slurm considers ended.
    """
    before = {path: attempt_dir.heartbeats(path) for path in attempts}
    before = {path: files for path, files in before.items() if files}
    if not before:
        return ""
    for path in before:
        attempt_dir.write(os.path.join(path, attempt_dir.CLOSED), "")
    # A change is observed, since the clocks of the login node and of the compute nodes may differ.
    time.sleep(attempt_dir.HEARTBEAT_SAMPLE_SECONDS)
    running = []
    for path, files in before.items():
        now = attempt_dir.heartbeats(path)
        if any(files.get(file) != changed for file, changed in now.items()):
            started = attempt_dir.read_shape(attempt_dir.Started, path, attempt_dir.STARTED)
            nodes = " on %s" % started.nodes if started else ""
            running.append("Slurm job %s (%s)%s" % (attempt_dir.job_of(path), path, nodes))
        else:  # the next call need not wait again
            for file in now:
                with contextlib.suppress(OSError):
                    os.unlink(file)
    if not running:
        return ""
    return "processes of %s still run although Slurm considers it ended" % ", ".join(running)


def test_only(request: SubmitRequest) -> SubmitAnswer:
    """Run ``sbatch --test-only`` with the options and the script that :func:`submit` would use."""
    argv = [*sbatch(request), "--test-only"]
    done = slurm_command.run(argv, request.budget, stdin=request.files[attempt_dir.SCRIPT])
    said = done.stderr.strip() or done.stdout.strip()
    if done.returncode:
        return SubmitAnswer(messages.REFUSED, message=said)
    return SubmitAnswer(messages.FITS, message=said, starts_in=starts_in(said))


def starts_in(said: str) -> Optional[float]:
    """Return the seconds until the start that ``sbatch --test-only`` estimates; None if its output has none.

    Args:
        said: Its output, with a time in this node's time zone: "Job 7 to start at 2026-11-28T08:00:00 using ...".
    """
    found = re.search(r" to start at ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})", said)
    if not found:
        return None
    try:
        start = time.mktime(time.strptime(found.group(1), "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):  # no such day, or one that the system's clock cannot have
        return None
    return max(0.0, start - time.time())


def id_of_new_job(request: SubmitRequest, printed: str, errors: str) -> str:
    """Return the id of the job that sbatch has just created: from its output, else by the job's name.

    Args:
        request: The submission.
        printed: sbatch's standard output.
        errors: sbatch's standard error.

    Raises:
        OSError: Neither identifies the job.
    """
    assert request.key
    cause = "Slurm has no job named %s" % request.key
    job_id = attempt_dir.job_id_in(printed)
    if not job_id:
        try:
            job_id = find_by_name(request.key, request.budget)
        except OSError as error:
            cause = "squeue failed: %s" % error
    if not job_id:
        raise OSError("sbatch printed %r, and %s" % ((printed + errors).strip()[-MAX_QUOTED_LENGTH:], cause))
    return job_id


def submit(request: SubmitRequest) -> SubmitAnswer:
    """Submit the attempt's job, or find it; see the module."""
    assert request.key
    directory, budget = request.directory, request.budget
    os.makedirs(directory, mode=0o700, exist_ok=True)
    lock_file = os.path.join(directory, attempt_dir.LOCK)
    again = os.path.exists(lock_file)
    with open(lock_file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(os.path.join(directory, attempt_dir.CLOSED)):
            return SubmitAnswer(messages.CLOSED)
        job_id = attempt_dir.job_of(directory)
        if job_id:
            return SubmitAnswer(messages.FOUND, job_id)
        try:
            job_id = find_by_name(request.key, budget, ended=again)
        except OSError as error:
            return SubmitAnswer(messages.NO_ANSWER, message=str(error))
        if job_id:
            return SubmitAnswer(messages.FOUND, claim(directory, job_id))
        stage_directory = os.path.dirname(directory)
        result = stage_result.find(stage_directory, request.stage) if request.stage else None
        if result:
            return SubmitAnswer(messages.REUSED, result=result)
        # A new attempt starts only after Slurm has ended the jobs of all earlier attempts.
        number = attempt_dir.attempt_number(directory)
        earlier = [
            p for p in attempt_dir.attempts_in(stage_directory) if attempt_dir.attempt_number(p) < number
        ]
        earlier += request.replaces
        running = still_running(earlier)
        if running:
            return SubmitAnswer(messages.STILL_RUNS, message=running)
        for path in earlier:
            attempt_dir.remove_secrets(path)
        put_files(request)
        archived = stage_result.start(directory, request.stage) if request.stage else []
        owner = Owner(key=request.key, version=request.version, **request.owner)
        attempt_dir.write_json(os.path.join(directory, attempt_dir.OWNER), owner)
        argv = [*sbatch(request), os.path.join(directory, attempt_dir.SCRIPT)]
        # sbatch inherits the lock: if this process is killed, the next one waits until sbatch has ended.
        done = slurm_command.run(argv, budget, pass_fds=(lock.fileno(),))
        if done.returncode:
            return SubmitAnswer(messages.REFUSED, message=done.stderr.strip())
        try:
            submitted = id_of_new_job(request, done.stdout, done.stderr)
            job_id = claim(directory, submitted)
        except OSError as error:
            return SubmitAnswer(messages.UNREAD, message=str(error))
        if job_id != submitted:
            slurm_command.run(["scancel", submitted], budget)
        return SubmitAnswer(messages.SUBMITTED, job_id, archived)


def main(request: Dict[str, Any]) -> Any:
    """Submit or test the job of the request, or write its files if it has no key."""
    asked = decode(SubmitRequest, request)
    # Of templates/login_command.sh; sbatch would pass it on to the job.
    with contextlib.suppress(KeyError):  # missing, or another thread (serve.py) has just removed it
        del os.environ["LLM_BRIDGE_CLEARED"]
    if asked.key is None:
        put_files(asked)
        archived = stage_result.start(asked.directory, asked.stage) if asked.stage else []
        return encode(SubmitAnswer(messages.PLACED, archived=archived))
    try:
        return encode(test_only(asked) if asked.test_only else submit(asked))
    except slurm_command.RateLimitExceeded as error:
        return encode(SubmitAnswer(messages.NO_ANSWER, message=str(error)))
