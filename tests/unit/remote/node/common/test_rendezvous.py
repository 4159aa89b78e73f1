"""The port at which the nodes of one job meet."""

from __future__ import annotations

from llm_bridge.remote.node.common.rendezvous import rendezvous_port
from llm_bridge.remote.node.ray import ports


def test_the_port_of_no_job_lies_in_a_block_of_a_ray_cluster_or_in_the_range_of_linux() -> None:
    found = {rendezvous_port(job) for job in range(1, 200_000, 7)}
    blocks = ports.blocks(32768)
    assert found.isdisjoint(range(blocks[0], blocks[-1] + ports.BLOCK))
    assert min(found) >= 10_000 and max(found) < 32_768 and len(found) == 2000
