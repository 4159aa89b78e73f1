"""The all-reduce over a job's nodes, with stand-ins for its processes; the real ones run in tests/verl."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from llm_bridge.remote.node.common import programs
from llm_bridge.remote.node.preflight import all_reduce, network_test
from llm_bridge.remote.node.preflight.all_reduce import Measured, neighbours
from llm_bridge.remote.node.preflight.network_test import Size

NODES = ["n1", "n2", "n3", "n4"]


@pytest.mark.parametrize(
    ("nodes", "rounds"),
    [
        (1, []),
        (2, []),
        (3, [[(0, 1)], [(1, 2)], [(2, 0)]]),
        (4, [[(0, 1), (2, 3)], [(1, 2), (3, 0)]]),
        (5, [[(0, 1), (2, 3)], [(1, 2), (3, 4)], [(4, 0)]]),
    ],
)
def test_each_node_is_measured_with_both_neighbours_and_with_one_at_a_time(
    nodes: int, rounds: list[list[tuple[int, int]]]
) -> None:
    assert neighbours(nodes) == rounds
    for pairs in rounds:
        members = [node for pair in pairs for node in pair]
        assert len(set(members)) == len(members)


def test_the_rate_is_the_buffers_size_by_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Buffer:
        def numel(self) -> int:
            return 2**28

        def element_size(self) -> int:
            return 4

    now = [0.0]
    waits = iter([3.0, 0.5, 2.0, 1.0, 1.0])
    monkeypatch.setattr(all_reduce.time, "monotonic", lambda: now[0])
    calls: list[str] = []

    def reduce(_buffer: object) -> None:
        calls.append("all_reduce")

    def synchronize() -> None:
        # An all-reduce on a GPU has only been queued when the call returns.
        if calls and calls[-1] == "all_reduce":
            now[0] += next(waits)
        calls.append("synchronize")

    assert all_reduce.rate(reduce, Buffer(), synchronize) == 2.0
    assert calls == ["synchronize", "all_reduce", "synchronize"] * all_reduce.ROUNDS


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        # n3 is slow with both neighbours.
        (
            [(0, 1, 30.0), (2, 3, 5.0), (1, 2, 6.0), (3, 0, 30.0)],
            {"n3": "5.0 GiB/s with n4 and 6.0 GiB/s with n2"},
        ),
        # One link is slow, or every node is: no node can be named.
        (
            [(0, 1, 30.0), (2, 3, 5.0), (1, 2, 30.0), (3, 0, 30.0)],
            dict.fromkeys(NODES, "4.0 GiB/s over 4 nodes x 8 GPUs, "),
        ),
        (
            [(0, 1, 5.0), (2, 3, 5.0), (1, 2, 5.0), (3, 0, 5.0)],
            dict.fromkeys(NODES, "4.0 GiB/s over 4 nodes x 8 GPUs, "),
        ),
    ],
)
def test_the_node_that_is_slow_with_both_neighbours_is_named(
    pairs: list[tuple[int, int, float]], expected: dict[str, str]
) -> None:
    found = network_test.slow(Measured("nccl", 4.0, pairs), Size(4, 8), NODES, 20.0)
    assert set(found) == set(expected)
    for node, (text,) in found.items():
        assert text.startswith("all-reduce is too slow: ") and expected[node] in text
        assert "4.0 GiB/s over 4 nodes x 8 GPUs, preflight.min_gib_per_second requires 20" in text


def test_a_rate_that_is_high_enough_is_no_fault_and_two_slow_nodes_have_the_same_message() -> None:
    assert network_test.slow(Measured("nccl", 20.0, []), Size(2, 8), NODES[:2], 20.0) == {}
    slow = network_test.slow(Measured("nccl", 19.0, []), Size(2, 8), NODES[:2], 20.0)
    assert list(slow) == ["n1", "n2"] and slow["n1"] == slow["n2"]


def run(
    monkeypatch: pytest.MonkeyPatch, program: str, seconds: float = 20, gpus: int = 2, node: int = 0
) -> tuple:
    """Run the all-reduce with a Python program in the place of its processes; LOCAL is in ``sys.argv[3]``."""
    monkeypatch.setenv("RENDEZVOUS_HOST", "n1")
    monkeypatch.setattr(
        programs, "command", lambda name, *arguments: [sys.executable, "-c", program, *arguments]
    )
    return network_test.run(Size(2, gpus), node, seconds, 20.0)


def test_each_gpu_has_a_process_and_the_first_one_has_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import json, sys
assert sys.argv[1:3] == ["0", "2"] and sys.argv[4:] == ["2", "n1", "cuda", "20.0"], sys.argv
print("noise")
if sys.argv[3] == "0": print(json.dumps(["nccl", 27.1, [[0, 1, 26.0]]]))
"""
    faults, measured = run(monkeypatch, program)
    assert faults == [] and measured == ("nccl", 27.1, [[0, 1, 26.0]])
    assert run(monkeypatch, "print('nothing')", node=1) == ([], None)


def test_lines_of_nccl_around_the_result_are_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
print("n1:812:812 [0] NCCL INFO cudaDriverVersion 12040\\nNCCL version 2.21.5+cuda12.4")
print('["nccl", 27.1, []]')
print("n1:812:812 [0] NCCL INFO comm 0x55 rank 0 nranks 4 cudaDev 0 busId 1b000 - Destroy COMPLETE")
print("[2026-11-27 23:59:00] n1:812:820 [0] NCCL INFO [Proxy Service] exiting")
"""
    assert run(monkeypatch, program) == ([], ("nccl", 27.1, []))


def test_a_node_of_cpus_has_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import sys
assert sys.argv[1:] == ["0", "2", "0", "1", "n1", "cpu", "20.0"], sys.argv
print('["gloo", 0.5, []]')
"""
    assert run(monkeypatch, program, gpus=0) == ([], ("gloo", 0.5, []))


def test_the_process_that_failed_first_is_named_and_the_others_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network_test, "FAILURE_GRACE_SECONDS", 0.2)
    began = time.monotonic()
    program = """
import sys, time
if sys.argv[3] == "0": time.sleep(60)
sys.exit("RuntimeError: NCCL error\\nncclSystemError: System call failed")
"""
    assert run(monkeypatch, program) == (
        ["all-reduce over 2 nodes x 2 GPUs failed on GPU 1: ncclSystemError: System call failed"],
        None,
    )
    assert time.monotonic() - began < 30


def test_processes_that_hang_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    faults, _ = run(monkeypatch, "import time; time.sleep(60)", seconds=0.5, gpus=0)
    assert faults == ["all-reduce over 2 nodes did not end within 0 s"]


def test_a_process_that_cannot_be_killed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "KILL_SECONDS", 0.2)
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: None)
    began = time.monotonic()
    faults, _ = run(monkeypatch, "import time; time.sleep(60)", seconds=0.5)
    assert faults == ["all-reduce over 2 nodes x 2 GPUs did not end within 0 s"]
    assert time.monotonic() - began < 50
