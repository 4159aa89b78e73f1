"""Run preflight on the GPUs of this machine, without Slurm: ``python3 benchmarks/gpu_preflight.py`` (about a minute).

It needs the driver, torch with CUDA, and this repository. Each case runs the program as a job does and compares its end
with the expected one; with two GPUs, they are two nodes as well. The last line is ``n of m cases as expected``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))

from llm_bridge.remote import attempt_dir, node_archive

WANTED: dict[str, Any] = {
    "device": "cuda",
    "ray": True,
    "temp_dir": "/tmp/ray",
    "min_free_gib": 0.001,
    "max_clock_skew_seconds": 5,
    "all_reduce_seconds": 90,
}


class Trial:
    """The cases, and what they ended with.

    Args:
        folder: Receives the archive and the directory of each case.
        gpus: Number of GPUs of this machine.
    """

    def __init__(self, folder: Path, gpus: int) -> None:
        self.folder, self.gpus = folder, gpus
        self.archive = folder / attempt_dir.NODE_ARCHIVE
        self.archive.write_bytes(node_archive.build())
        self.results: list[bool] = []

    def run(self, name: str, visible: list[str], code: int, expected: str, **wanted: Any) -> None:
        """Run preflight, one process per node, and print its output.

        Args:
            name: The case.
            visible: CUDA_VISIBLE_DEVICES of each node.
            code: Expected exit code of the first node.
            expected: Part of the expected output of the first node, or of the reason.
            wanted: Settings of preflight that differ.
        """
        attempt = self.folder / f"case{len(self.results)}"
        attempt.mkdir()
        counted = {"gpus_per_node": len(visible[0].split(","))}
        settings = attempt / attempt_dir.SETTINGS
        settings.write_text(json.dumps({"preflight": WANTED | counted | wanted}))
        names = [f"n{number}" for number in range(1, len(visible) + 1)]
        began = time.monotonic()
        running = [
            subprocess.Popen(
                [sys.executable, str(self.archive), "preflight", str(settings)],
                env={
                    **os.environ,
                    **self._variables(names),
                    "SLURMD_NODENAME": node,
                    "CUDA_VISIBLE_DEVICES": devices,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for node, devices in zip(names, visible, strict=True)
        ]
        outputs = [process.communicate()[0] for process in running]
        right = running[0].returncode == code and expected in outputs[0]
        self.results.append(right)
        print(f"--- {name}: {'as expected' if right else f'WRONG, expected {code} and {expected!r}'}")
        print(
            f"exit codes {[process.returncode for process in running]} after {time.monotonic() - began:.1f} s"
        )
        print("".join(outputs), flush=True)

    def _variables(self, names: list[str]) -> dict[str, str]:
        return {
            "SLURM_JOB_ID": str(4242 + len(self.results)),
            "LLM_BRIDGE_NODES": " ".join(names),
            "LLM_BRIDGE_NETWORK_INTERFACE": "lo",
            "RENDEZVOUS_HOST": "127.0.0.1",
            "NCCL_SOCKET_IFNAME": "lo",
        }


def print_state() -> int:
    """Print what nvidia-smi says of the state of the GPUs, and return their number."""
    state = subprocess.run(["nvidia-smi", "-q", "-x"], capture_output=True, text=True, check=True).stdout
    words = (
        "<driver_version",
        "<uuid",
        "recovery_action",
        "uncorrectable",
        "pending",
        "remapped_row",
        "reset",
    )
    print(*(line.strip() for line in state.splitlines() if any(word in line for word in words)), sep="\n")
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    print(listed, flush=True)
    return len([line for line in listed.splitlines() if line.startswith("GPU ")])


def main() -> int:
    """Run the cases; return 1 if one did not end as expected."""
    gpus = print_state()
    every = ",".join(map(str, range(gpus)))
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), gpus)
        absent = str(gpus + 5)
        trial.run(
            "a GPU that is not there", [absent], 1, f"={absent} names {absent}, but the driver has 0 (GPU-"
        )
        trial.run("an unknown UUID", ["GPU-12345678"], 1, "names GPU-12345678, but the driver has 0 (GPU-")
        trial.run(
            "more GPUs than the machine has",
            [f"{every},{gpus}"],
            1,
            f"the driver shows {gpus} of {gpus + 1} GPUs",
        )
        if gpus == 1:
            trial.run("one node", [every], 0, "1 node(s) in order")
        else:
            trial.run("one node", [every], 0, f"nccl all-reduce over 1 node x {gpus} GPUs: ")
            trial.run("two nodes", ["0", "1"], 0, "nccl all-reduce over 2 nodes x 1 GPU: ")
            slow = "preflight.min_gib_per_second requires 1e+06"
            trial.run("two nodes, too slow", ["0", "1"], 1, slow, min_gib_per_second=1e6)
        if gpus > 2:
            nodes = [str(number) for number in range(gpus)]
            trial.run("each GPU a node, too slow", nodes, 1, slow, min_gib_per_second=1e6)
        print(f"{sum(trial.results)} of {len(trial.results)} cases as expected")
        return 0 if all(trial.results) else 1


if __name__ == "__main__":
    sys.exit(main())
