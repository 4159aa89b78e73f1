"""Why Ray does not start a job: it asks for what no node of the cluster has."""

from __future__ import annotations

import time
from typing import Any

from llm_bridge.ray.client import RayClient

# Nodes that an error names one by one.
NODES_NAMED = 8


async def given_up(
    client: RayClient, job: dict[str, Any], submission_id: str, pending_until: float | None
) -> str | None:
    """:func:`cannot_start`, of a job that is PENDING still when it should not be any more.

    :param job: what Ray says of it.
    :param pending_until: epoch seconds; None for a job that may wait for ever.
    """
    if job["status"] != "PENDING" or pending_until is None or time.time() < pending_until:
        return None
    return await cannot_start(client, submission_id)


async def cannot_start(client: RayClient, submission_id: str) -> str | None:
    """Why a PENDING job will never start on the nodes that are there now, as a sentence.

    None where it may: a node has what it asks for (and others are using it), or it waits for something else, as for
    the packages of its ``runtime_env``.

    :raises RayUnreachable: the dashboard does not answer.
    :raises RayRefused: it refuses the question.
    """
    asked = await client.asked_for(submission_id)
    if not asked:
        return None
    nodes = {node["node_name"]: node.get("resources_total") or {} for node in await client.nodes()}
    if any(fits(asked, has) for has in nodes.values()):
        return None
    there = [f"{name} {words(has, asked)}" for name, has in sorted(nodes.items())]
    if len(there) > NODES_NAMED:
        there = [*there[:NODES_NAMED], f"and {len(there) - NODES_NAMED} more"]
    return (
        f"it asks for {words(asked, asked)} on one node, and no node of its Ray cluster has that: {', '.join(there)}. "
        "Ask for less (entrypoint_num_cpus, entrypoint_num_gpus, entrypoint_memory, entrypoint_resources of the job), "
        "or submit it to a cluster with such a node"
    )


def fits(asked: dict[str, float], has: dict[str, float]) -> bool:
    """Whether a node could run it, were it empty."""
    return all(has.get(name, 0) >= amount for name, amount in asked.items())


def words(resources: dict[str, float], names: dict[str, float]) -> str:
    """``GPU 8, memory 4.0 GiB`` of those resources that are in ``names``; memory is in bytes."""
    return ", ".join(
        f"{name} {resources.get(name, 0) / 2**30:.1f} GiB"
        if name.endswith("memory")
        else f"{name} {resources.get(name, 0):g}"
        for name in names
    )
