"""Measure an all-reduce over the GPUs of a job with NCCL, or over its nodes with gloo on CPUs.

``python node.pyz preflight-all-reduce NODE NODES LOCAL PER_NODE HOST DEVICE MINIMUM``, one process per GPU (or node),
because NCCL may hang for ever or abort the process. The first process prints a :class:`Measured` as JSON. If the rate
is below MINIMUM (GiB/s), the processes measure neighbouring nodes in pairs, too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# NCCL needs large buffers to reach the rate of the network; with gloo this only shows that the network works.
BUFFER_MIB = {"cuda": 256, "cpu": 16}
ROUNDS = 5


class Measured(NamedTuple):
    """Rates of all-reduces in GiB/s, as of :func:`rate`.

    Attributes:
        backend: ``nccl`` or ``gloo``.
        rate: Over all processes.
        pairs: Numbers of two nodes, and the rate over their processes.
    """

    backend: str
    rate: float
    pairs: list[tuple[int, int, float]]


def neighbours(nodes: int) -> list[list[tuple[int, int]]]:
    """Return the pairs of neighbours in the ring of all nodes, in rounds in which each node has one pair at most."""
    if nodes < 3:  # the rate of the only pair is known
        return []
    ring = [(node, (node + 1) % nodes) for node in range(nodes)]
    # With an odd number of nodes, the last pair shares a node with the first one.
    odd_one = [ring.pop()] if nodes % 2 else []
    return [pairs for pairs in (ring[::2], ring[1::2], odd_one) if pairs]


def rate(all_reduce: Callable[..., Any], buffer: Any, synchronize: Callable[[], None]) -> float:
    """Return the algorithm bandwidth of an all-reduce in GiB/s: the size of the buffer divided by the time of one call.

    This is "algbw" of nccl-tests. Each process sends and receives up to twice as much: with n processes 2 (n-1) / n of
    it ("busbw"). The time is the best of several: others use the network as well.

    Args:
        all_reduce: Sums up the buffers of all processes in place.
        buffer: This process's tensor; connections have been set up before.
        synchronize: Waits until the device has done its work.
    """
    times = []
    for _ in range(ROUNDS):
        synchronize()
        began = time.monotonic()
        all_reduce(buffer)
        synchronize()
        times.append(time.monotonic() - began)
    size: int = buffer.numel() * buffer.element_size()
    return size / 2**30 / min(times)


def main() -> None:
    """Run the program."""
    import torch
    import torch.distributed as dist

    from llm_bridge.remote.node.common.rendezvous import rendezvous_port

    node, nodes, local, per_node = map(int, sys.argv[1:5])
    host, device, minimum = sys.argv[5], sys.argv[6], float(sys.argv[7])
    rank, processes = node * per_node + local, nodes * per_node
    if device == "cuda":
        torch.cuda.set_device(local)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    backend = "nccl" if device == "cuda" else "gloo"
    port = rendezvous_port(int(os.environ["SLURM_JOB_ID"]))
    dist.init_process_group(backend, init_method=f"tcp://{host}:{port}", rank=rank, world_size=processes)

    def measure(group: Any = None) -> float:
        """Return the rate over the processes of a group, the same in each of them; by default of all."""
        # Warm-up: sets the connections up.
        buffer = torch.ones(BUFFER_MIB[device] * 2**18, device=device)  # 4 bytes each
        dist.all_reduce(buffer, group=group)
        expected = dist.get_world_size(group)
        if not bool((buffer == expected).all()):
            raise SystemExit(f"wrong sum over {expected} processes")
        buffer.zero_()
        own = rate(lambda tensor: dist.all_reduce(tensor, group=group), buffer, synchronize)
        slowest = torch.tensor([own], device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MIN, group=group)
        return float(slowest.item())

    measured = Measured(backend, measure(), [])
    if measured.rate < minimum:
        for pairs in neighbours(nodes):
            ranks = [[each * per_node + i for each in pair for i in range(per_node)] for pair in pairs]
            # Every process takes part in making every group, and waits for all others in each call.
            groups = [dist.new_group(members) for members in ranks]
            rates = torch.zeros(len(pairs), device=device)
            for number, (group, members) in enumerate(zip(groups, ranks, strict=True)):
                if rank in members:
                    rates[number] = measure(group)
            dist.all_reduce(rates, op=dist.ReduceOp.MAX)
            measured.pairs.extend((*pair, r) for pair, r in zip(pairs, rates.tolist(), strict=True))
    if rank == 0:
        print(json.dumps(measured))
    dist.destroy_process_group()
