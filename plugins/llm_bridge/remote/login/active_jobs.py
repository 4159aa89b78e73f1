"""List the pending and running jobs of llm-bridge, and their owners.

Takes an ActiveRequest and returns an ActiveAnswer (``remote/messages.py``).

A job belongs to llm-bridge if its working directory is an attempt directory of this workspace, and its name is the one
that submit.py recorded there (OWNER).
"""

import os
import time
from typing import Any, Dict, Optional

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Owner
from llm_bridge.remote.login import slurm_command
from llm_bridge.remote.messages import ActiveAnswer, ActiveJob, ActiveRequest, decode, encode


def parse_row(row: str, workspace: str) -> Optional[ActiveJob]:
    """Return a row of squeue as a job of llm-bridge; None for any other line.

    Args:
        row: ``ID|NAME|STATE|DIRECTORY``.
        workspace: The cluster's workspace.
    """
    if "|llmb-" not in row or row.count("|") < 3:
        return None
    job_id, name, state, directory = row.split("|", 3)
    if not attempt_dir.job_id_in(job_id) or not directory.startswith(workspace.rstrip("/") + "/"):
        return None
    owner = attempt_dir.read_shape(Owner, directory, attempt_dir.OWNER)
    if owner is None or owner.key != name:
        return None
    mark = os.path.join(directory, attempt_dir.ORPHAN_SEEN)
    seen = time.time() - os.stat(mark).st_mtime if os.path.exists(mark) else None
    return ActiveJob(job_id, state, directory, attempt_dir.as_json(owner), seen)


def main(request: Dict[str, Any]) -> Any:
    """Mark the orphans that the request names, then list the jobs."""
    asked = decode(ActiveRequest, request)
    for directory in asked.mark:
        attempt_dir.write(os.path.join(directory, attempt_dir.ORPHAN_SEEN), "")
    try:
        done = slurm_command.run(["squeue", "--me", "-h", "-o", "%i|%j|%T|%Z"], asked.budget)
    except slurm_command.RateLimitExceeded as error:
        return encode(ActiveAnswer(error=str(error)))
    if done.returncode:
        return encode(ActiveAnswer(error=done.stderr.strip() or "squeue failed"))
    jobs = [parse_row(row, asked.workspace) for row in done.stdout.splitlines()]
    return encode(ActiveAnswer([job for job in jobs if job]))
