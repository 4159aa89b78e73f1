"""List the jobs of all attempts of one stage.

Takes an AttemptsRequest and returns an AttemptsAnswer (``remote/messages.py``).

With ``close`` none of these attempts can get a job any more: a delayed submission, or one by a worker that has lost its
connection to Airflow, finds the attempt closed (submit.py, batch.sh.j2). Their secrets are removed as well.
"""

import fcntl
import os
from typing import Any, Dict, Optional

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Owner
from llm_bridge.remote.login import slurm_command, submit
from llm_bridge.remote.messages import (
    AttemptJob,
    AttemptsAnswer,
    AttemptsRequest,
    RateBudget,
    decode,
    encode,
)


def close(path: str, budget: Optional[RateBudget]) -> Optional[str]:
    """Close an attempt, and record the id of its job if that is not on file yet.

    A workspace that is full or read-only does not keep a job running: the attempt's job is returned all the same. A
    further job of the attempt ends at once, because it cannot record its id either.

    Args:
        path: The attempt's directory.
        budget: The site's rate limit, if it has one.

    Returns:
        The id of the attempt's job; None without one.

    Raises:
        OSError: squeue failed, or a file cannot be written.
        RateLimitExceeded: The rate limit allows no call.
    """
    owner, job_id = attempt_dir.read_shape(Owner, path, attempt_dir.OWNER), None
    try:
        with open(os.path.join(path, attempt_dir.LOCK), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            job_id = attempt_dir.job_of(path)
            if owner and not job_id:
                job_id = submit.find_by_name(owner.key, budget)
                if job_id:
                    job_id = submit.claim(path, job_id)
            attempt_dir.write(os.path.join(path, attempt_dir.CLOSED), "")
    except OSError as error:
        if error.errno not in attempt_dir.NOT_WRITABLE:
            raise
        job_id = job_id or attempt_dir.job_of(path)
        if owner and not job_id:
            job_id = submit.find_by_name(owner.key, budget)
    attempt_dir.remove_secrets(path)
    return job_id


def main(request: Dict[str, Any]) -> Any:
    """List the attempts, and close them if the request says so."""
    asked = decode(AttemptsRequest, request)
    found = []
    for path in attempt_dir.attempts_in(asked.directory):
        try:
            job_id = close(path, asked.budget) if asked.close else attempt_dir.job_of(path)
        except (OSError, slurm_command.RateLimitExceeded) as error:
            return encode(AttemptsAnswer(error=str(error)))
        if job_id:
            found.append(AttemptJob(job_id, path))
    return encode(AttemptsAnswer(found))
