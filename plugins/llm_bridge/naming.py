"""Names of jobs and directories, derived from Airflow's identifiers so that a job can always be found again."""

from __future__ import annotations

import hashlib
import re


def slug(text: str, length: int = 60) -> str:
    """Return ``text`` as a safe file or job name of ``[A-Za-z0-9_.-]``.

    Two texts that differ only in replaced or cut characters would collide, so a changed text gets a hash of the
    original at its end.

    Args:
        text: Any text.
        length: Maximum length of the result, in characters.
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")
    if safe and safe == text and len(safe) <= length:
        return safe
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[: length - 9]}-{digest}".lstrip("-.")


def job_key(dag_id: str, run_id: str, task_id: str, map_index: int, attempt: int) -> str:
    """Return the name of one submission: Slurm job name and Ray submission id.

    The readable part is for people in ``squeue``; the hash makes it unique.

    Args:
        dag_id: The DAG.
        run_id: The run.
        task_id: The task.
        map_index: -1 for a task that is not mapped.
        attempt: Number of the attempt, from 1.
    """
    identity = "\0".join((dag_id, run_id, task_id, str(map_index)))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return f"llmb-{slug(task_id, 40)}-{digest}-{attempt}"
