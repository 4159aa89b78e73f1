"""Program preflight, as srun starts it; on real nodes in tests/ray/test_preflight.py."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from llm_bridge.remote import attempt_dir

WANTED: dict[str, Any] = {
    "gpus_per_node": 2,
    "device": "cpu",
    "ray": True,
    "temp_dir": "/tmp/ray",
    "min_free_gib": 0.001,
    "max_clock_skew_seconds": 5,
    "all_reduce_seconds": 60,
}


def nodes(
    command: list[str], attempt: Path, names: list[str], **variables: str
) -> list[subprocess.Popen[str]]:
    """The program as srun starts it, all nodes on this machine."""
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SLURM")},
        "SLURM_JOB_ID": "4242",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "LLM_BRIDGE_NODES": " ".join(names),
        "LLM_BRIDGE_NETWORK_INTERFACE": "lo",
        "RENDEZVOUS_HOST": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    argv = [*command, "preflight", str(attempt / attempt_dir.SETTINGS)]
    return [
        subprocess.Popen(argv, env={**environ, "SLURMD_NODENAME": name}, stdout=-1, stderr=-1, text=True)
        for name in names
    ]


def test_three_nodes_in_order_add_up_a_tensor(command: list[str], tmp_path: Path) -> None:
    (tmp_path / attempt_dir.SETTINGS).write_text(json.dumps({"preflight": WANTED}))
    running = nodes(command, tmp_path, ["n1", "n2", "n3"])
    ended = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ended
    assert "gloo all-reduce over 3 nodes" in ended[0][0] and "3 node(s) in order" in ended[0][0]


def test_a_network_below_the_required_rate_fails_and_neighbours_are_measured(
    command: list[str], tmp_path: Path
) -> None:
    wanted = WANTED | {"min_gib_per_second": 1e6}
    (tmp_path / attempt_dir.SETTINGS).write_text(json.dumps({"preflight": wanted}))
    running = nodes(command, tmp_path, ["n1", "n2", "n3"])
    ended = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [1, 1, 1], ended
    reason = json.loads((tmp_path / attempt_dir.REASON).read_text())
    assert reason["nodes"] == [], "every pair is slow: no node can be named"
    assert "GiB/s over 3 nodes, preflight.min_gib_per_second requires 1e+06" in reason["reason"]


def test_a_node_whose_all_reduce_hangs_ends_all_of_them_in_time(command: list[str], tmp_path: Path) -> None:
    """An interface that carries no traffic between the nodes is the classic one; a stopped process looks the same."""
    (tmp_path / attempt_dir.SETTINGS).write_text(
        json.dumps({"preflight": WANTED | {"all_reduce_seconds": 8}})
    )
    began = time.monotonic()
    first = nodes(command, tmp_path, ["n1", "n2"], RENDEZVOUS_HOST="192.0.2.1")  # TEST-NET-1: unreachable
    ended = [process.communicate(timeout=600) for process in first]
    assert [process.returncode for process in first] == [1, 1], ended
    assert time.monotonic() - began < 300, "gloo alone waits half an hour"
    reason = json.loads((tmp_path / attempt_dir.REASON).read_text())
    assert "all-reduce over 2 nodes did not end within 8 s" in reason["reason"]
