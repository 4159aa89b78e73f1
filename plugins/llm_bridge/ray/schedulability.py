"""Detect Ray jobs that can never start because they request more than any node of the cluster has."""

from __future__ import annotations

import time

from llm_bridge.ray.client import RayClient, RayJobDetails

# Nodes that an error message lists; the rest is counted.
MAX_LISTED_NODES = 8


async def unschedulable_reason(
    client: RayClient, job: RayJobDetails, submission_id: str, pending_until: float | None
) -> str | None:
    """Return :func:`cannot_start` of a job that is still PENDING after ``pending_until``, else None.

    Args:
        client: Client of the cluster's dashboard.
        job: Details that Ray reports.
        submission_id: Ray's id of the job.
        pending_until: Epoch seconds; None for a job that may wait without limit.
    """
    if job.status != "PENDING" or pending_until is None or time.time() < pending_until:
        return None
    return await cannot_start(client, submission_id)


async def cannot_start(client: RayClient, submission_id: str) -> str | None:
    """Return a sentence on why a PENDING job can never start on the nodes that are alive now.

    Args:
        client: Client of the cluster's dashboard.
        submission_id: Ray's id of the job.

    Returns:
        None if the job may start: some node has the resources (other jobs use them now), or the job waits for something
        else, such as the packages of its ``runtime_env``.

    Raises:
        RayUnavailable: The dashboard does not answer.
        RayRequestError: The dashboard refuses the request.
    """
    requested = await client.requested_resources(submission_id)
    if not requested:
        return None
    nodes = {node["node_name"]: node.get("resources_total") or {} for node in await client.nodes()}
    if any(can_fit(requested, available) for available in nodes.values()):
        return None
    listed = [f"{name} {format_resources(has, requested)}" for name, has in sorted(nodes.items())]
    if len(listed) > MAX_LISTED_NODES:
        listed = [*listed[:MAX_LISTED_NODES], f"and {len(listed) - MAX_LISTED_NODES} more"]
    return (
        f"it requests {format_resources(requested, requested)} on one node, and no node of its Ray cluster has that: "
        f"{', '.join(listed)}. Request less (entrypoint_num_cpus, entrypoint_num_gpus, entrypoint_memory, "
        "entrypoint_resources of the job), or submit it to a cluster with such a node"
    )


def can_fit(requested: dict[str, float], available: dict[str, float]) -> bool:
    """Return True if a node could run the job while no other job uses the node."""
    return all(available.get(name, 0) >= amount for name, amount in requested.items())


def format_resources(resources: dict[str, float], names: dict[str, float]) -> str:
    """Return ``GPU 8, memory 4.0 GiB`` for the resources in ``names``; memory is given in bytes."""
    return ", ".join(
        f"{name} {resources.get(name, 0) / 2**30:.1f} GiB"
        if name.endswith("memory")
        else f"{name} {resources.get(name, 0):g}"
        for name in names
    )
