"""Choose the rendezvous port of a job's nodes, in a range that no Ray cluster uses."""

from __future__ import annotations

# Above the ports of common services, below the blocks of Ray clusters (remote/node/ray/ports.py starts at the end of
# this range), which may run on the same node.
RENDEZVOUS_PORTS = range(10_000, 12_000)


def rendezvous_port(job_id: int) -> int:
    """Return a port that depends on the job's id."""
    return RENDEZVOUS_PORTS[job_id % len(RENDEZVOUS_PORTS)]
