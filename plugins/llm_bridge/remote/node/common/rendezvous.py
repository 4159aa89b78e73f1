"""Choose the rendezvous port of a job's nodes."""

from __future__ import annotations


def rendezvous_port(job_id: int) -> int:
    """Return a port that depends on the job's id, below Linux' default ephemeral range (32768 and up)."""
    return 20000 + job_id % 10000
