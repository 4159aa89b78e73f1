"""One all-reduce over the nodes of a job: ``preflight_reduce.py RANK COUNT HOST DEVICE``. NCCL on GPUs, gloo on CPUs.

A process of its own, because NCCL may hang for good or end the process.
"""

from __future__ import annotations

import os
import sys
import time

MEGABYTES = 16


def main() -> None:
    """Entry point."""
    import torch
    import torch.distributed as dist
    from sft import rendezvous_port

    rank, count, host, device = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    port = rendezvous_port(int(os.environ["SLURM_JOB_ID"]))
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://{host}:{port}", rank=rank, world_size=count)
    ones = torch.ones(MEGABYTES * 2**18, device=device)
    dist.all_reduce(ones)  # the first one sets the connections up
    began = time.monotonic()
    dist.all_reduce(ones)
    total = ones[-1].item()
    if total != count**2:
        raise SystemExit(f"the sum over {count} nodes came out as {total}, not {count**2}")
    rate = MEGABYTES / 1024 * 2 * (count - 1) / count / (time.monotonic() - began)
    print(f"{backend} all-reduce over {count} nodes: {rate:.1f} GiB/s a node")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
