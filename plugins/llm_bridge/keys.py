"""Names under which a job can always be found again from what Airflow knows."""

from __future__ import annotations

import hashlib
import re


def slug(text: str, length: int = 60) -> str:
    """``text`` as one safe file or job name: ``[A-Za-z0-9_.-]``, at most ``length`` characters.

    Two texts that differ only in what is replaced or cut would collide, so a changed text gets a hash of
    the original at its end.
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")
    if safe and safe == text and len(safe) <= length:
        return safe
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[: length - 9]}-{digest}".lstrip("-.")


def job_key(dag_id: str, run_id: str, task_id: str, map_index: int, attempt: int) -> str:
    """The name of one submission: Slurm job name and Ray submission id.

    The readable part is for people in ``squeue``; the hash makes it unique.
    """
    identity = "\0".join((dag_id, run_id, task_id, str(map_index)))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return f"llmb-{slug(task_id, 40)}-{digest}-{attempt}"
