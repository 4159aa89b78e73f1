"""The port at which the nodes of one job meet."""

from __future__ import annotations

from llm_bridge.remote.node.common.rendezvous import rendezvous_port


def test_every_jobs_port_lies_below_the_range_that_linux_hands_out() -> None:
    ports = {rendezvous_port(job) for job in range(1, 200_000, 7)}
    assert min(ports) >= 20000 and max(ports) < 30000
