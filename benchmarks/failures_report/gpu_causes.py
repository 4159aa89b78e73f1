"""Failures that need GPUs, caused for real: ``python gpu_causes.py FOLDER`` where there are two NVIDIA GPUs and torch.

Each case is a training of two processes under torchrun that fails in its own way; what it prints becomes
``FOLDER/NAME.log``. testing/gpu_logs/ keeps such logs, and the tests check that each is diagnosed.
Standard library only here, so that it runs on a node without llm-bridge.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

START = """\
import datetime, os, sys, time
import torch
import torch.distributed as dist
rank = int(os.environ["LOCAL_RANK"])
"""
MEET = """\
torch.cuda.set_device(rank)
dist.init_process_group("nccl", timeout=datetime.timedelta(seconds=15))
x = torch.ones(1 << 20, device="cuda")
dist.all_reduce(x)
torch.cuda.synchronize()
"""
# name -> (what each process runs, more variables)
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "cuda_oom_on_one_rank": (
        MEET
        + """\
if rank == 1:
    held = [torch.empty(40 << 30, dtype=torch.uint8, device="cuda") for _ in range(3)]
for _ in range(20):
    dist.all_reduce(x)
    torch.cuda.synchronize()
    time.sleep(0.5)
""",
        {},
    ),
    "one_rank_stops": (
        MEET
        + """\
if rank == 1:
    time.sleep(90)
dist.all_reduce(x)
torch.cuda.synchronize()
""",
        {},
    ),
    "one_rank_is_killed": (
        MEET
        + """\
import signal
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
for _ in range(60):
    dist.all_reduce(x)
    torch.cuda.synchronize()
    time.sleep(0.5)
""",
        {},
    ),
    "no_such_interface": (MEET, {"NCCL_SOCKET_IFNAME": "nosuch0"}),
    "two_ranks_on_one_gpu": (MEET.replace("set_device(rank)", "set_device(0)"), {}),
    "gpu_that_is_not_there": ("torch.cuda.set_device(rank + 2)\n", {}),
    "no_gpu_at_all": ("torch.ones(1, device='cuda')\n", {"CUDA_VISIBLE_DEVICES": ""}),
    "token_outside_of_the_vocabulary": (
        MEET
        + """\
embed = torch.nn.Embedding(100, 8).cuda()
print(embed(torch.tensor([100], device="cuda")).sum().item())
""",
        {},
    ),
    "index_out_of_bounds": (
        MEET
        + """\
if rank == 1:
    x[torch.tensor([1 << 40], device="cuda")] = 1.0
torch.cuda.synchronize()
dist.all_reduce(x)
torch.cuda.synchronize()
""",
        {},
    ),
}
UNREACHABLE = """\
import datetime, torch.distributed as dist
wait = datetime.timedelta(seconds=8)
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:9", world_size=2, rank=1, timeout=wait)
"""


def main(folder: Path) -> None:
    """Run the cases one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scripts:
        for name, (body, variables) in CASES.items():
            script = Path(scripts) / f"{name}.py"
            script.write_text(START + body)
            command: list[str | Path] = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node=2",
                script,
            ]
            keep(folder / f"{name}.log", command, {"NCCL_DEBUG": "WARN", **variables})
        script = Path(scripts) / "unreachable.py"
        script.write_text(UNREACHABLE)
        keep(folder / "nobody_answers.log", [sys.executable, script], {})


def keep(log: Path, command: list[str | Path], variables: dict[str, str]) -> None:
    """Run a command and write its output to a file."""
    began = time.monotonic()
    with log.open("wb") as output:
        environ = {**os.environ, **variables}
        try:
            code: object = subprocess.run(
                command, env=environ, stdout=output, stderr=subprocess.STDOUT, timeout=120
            ).returncode
        except subprocess.TimeoutExpired:
            code = "none: it was still there after 120 s"
    print(f"{log.name}: exit code {code} after {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
