"""preflight.py and its checks; on real nodes in tests/ray_cluster/test_preflight.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import preflight
import preflight_checks
import pytest
import ray_ports

from tests.jobs.support import JOBS

WANTED: dict[str, Any] = {
    "gpus_per_node": 2,
    "device": "cpu",
    "temp_dir": "/tmp/ray",
    "min_free_gib": 0.001,
    "max_clock_skew_seconds": 5,
    "all_reduce_seconds": 60,
}


def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A stand-in: no GPU here."""
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_fewer_gpus_than_asked_for_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "has 1 of 2 GPUs" in preflight_checks.gpus(2, "cpu")[0]
    assert preflight_checks.gpus(1, "cpu") == []


def test_a_driver_that_does_not_answer_or_shows_too_few_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    nvidia_smi(tmp_path, monkeypatch, "echo 'GPU 0: H100'; echo 'GPU 1: H100'")
    assert preflight_checks.gpus(2, "cuda") == []
    nvidia_smi(tmp_path, monkeypatch, "echo 'Unable to determine the device handle for GPU1' >&2; exit 15")
    assert preflight_checks.gpus(2, "cuda") == [
        "the driver shows 0 of 2 GPUs: Unable to determine the device handle for GPU1"
    ]
    monkeypatch.setattr(preflight_checks, "DRIVER_SECONDS", 0.2)
    nvidia_smi(tmp_path, monkeypatch, "exec sleep 5")
    assert "a GPU hangs" in preflight_checks.gpus(2, "cuda")[0]


def test_an_interface_that_is_not_there_is_told_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_BRIDGE_NETWORK_INTERFACE", "enp25s0np0")
    (told,) = preflight_checks.interface("n1")
    assert "enp25s0np0" in told and "lo (127.0.0.1)" in told


def test_a_taken_port_is_told_before_torchrun_or_ray_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert preflight_checks.ports(4242, is_first=True) == []
    with socket.create_server(("127.0.0.1", 24242)):
        (told,) = preflight_checks.ports(4242, is_first=True)
        assert "port 24242" in told
        assert preflight_checks.ports(4242, is_first=False) == [], "they meet at the first node"
    monkeypatch.setattr(ray_ports, "taken", lambda block: [block + 7])
    (told,) = preflight_checks.ports(4242, is_first=False)
    assert "none of 22 blocks of 1000 ports is free" in told


def test_too_little_room_is_told_with_the_key_to_turn(tmp_path: Path) -> None:
    (told,) = preflight_checks.free_space(tmp_path / "not" / "yet", 10**9)
    assert told.startswith(f"{tmp_path} has") and "min_free_gib" in told
    assert preflight_checks.free_space(tmp_path, 0.001) == []


def test_a_clock_is_compared_with_the_file_servers(tmp_path: Path) -> None:
    assert preflight_checks.clock(tmp_path, "n1", 0.5) == []
    assert preflight_checks.skew(100.0, 99.9, 100.1, 5) == []
    for stamp in (80.0, 120.0):
        (told,) = preflight_checks.skew(stamp, 99.9, 100.1, 5)
        assert "19.9 s off" in told


@pytest.mark.parametrize(
    ("unreached", "blamed"),
    [
        ({"n1": [], "n2": [], "n3": []}, []),
        ({"n1": ["n2"], "n2": [], "n3": ["n2"]}, ["n2"]),  # nobody gets in
        ({"n1": [], "n2": ["n1", "n3"], "n3": []}, ["n2"]),  # it does not get out
        ({"n1": ["n2"], "n2": ["n1"]}, ["n1", "n2"]),  # two cannot tell whose fault it is
    ],
)
def test_the_node_that_most_others_do_not_reach_is_blamed(
    unreached: dict[str, list[str]], blamed: list[str]
) -> None:
    reports = {node: {"unreached": others} for node, others in unreached.items()}
    assert sorted(preflight.unreachable(reports)) == blamed


def test_one_bad_node_is_named_to_be_left_out_but_not_all_nodes_with_one_fault(tmp_path: Path) -> None:
    assert preflight.verdict(tmp_path, {}) == 0
    assert preflight.verdict(tmp_path, {"n2": ["its disk is full"]}) == 1
    reason = json.loads((tmp_path / "reason.json").read_text())
    assert reason["nodes"] == ["n2"] and reason["reason"] == "preflight: n2: its disk is full"
    preflight.verdict(tmp_path, {"n1": ["no such interface"], "n2": ["no such interface"]})
    assert json.loads((tmp_path / "reason.json").read_text())["nodes"] == []


def test_what_an_earlier_life_of_the_job_said_does_not_count(tmp_path: Path) -> None:
    preflight.Reports(tmp_path, ["n1", "n2"], "7.0").write("n2", "alone", {"problems": []})
    again = preflight.Reports(tmp_path, ["n1", "n2"], "7.1")
    again.write("n1", "alone", {"problems": []})
    assert list(again.wait_for("alone", 0.3)) == ["n1"]


def test_connections_are_really_tried() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    assert preflight_checks.connects(host, port)
    listener.close()
    assert not preflight_checks.connects(host, port)


def nodes(
    cluster_python: str, attempt: Path, names: list[str], **variables: str
) -> list[subprocess.Popen[str]]:
    """preflight.py as srun starts it, all nodes on this machine."""
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
    argv = [cluster_python, str(JOBS / "preflight.py"), str(attempt / "settings.json")]
    return [
        subprocess.Popen(argv, env={**environ, "SLURMD_NODENAME": name}, stdout=-1, stderr=-1, text=True)
        for name in names
    ]


def test_three_nodes_in_order_add_up_a_tensor(cluster_python: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"preflight": WANTED}))
    running = nodes(cluster_python, tmp_path, ["n1", "n2", "n3"])
    ended = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ended
    assert "gloo all-reduce over 3 nodes" in ended[0][0] and "3 node(s) in order" in ended[0][0]


def test_a_node_whose_all_reduce_hangs_ends_all_of_them_in_time(cluster_python: str, tmp_path: Path) -> None:
    """An interface that carries no traffic between the nodes is the classic one; a stopped process looks the same."""
    (tmp_path / "settings.json").write_text(json.dumps({"preflight": WANTED | {"all_reduce_seconds": 8}}))
    began = time.monotonic()
    first = nodes(
        cluster_python, tmp_path, ["n1", "n2"], RENDEZVOUS_HOST="192.0.2.1"
    )  # TEST-NET-1: nobody is there
    ended = [process.communicate(timeout=60) for process in first]
    assert [process.returncode for process in first] == [1, 1], ended
    assert time.monotonic() - began < 40
    reason = json.loads((tmp_path / "reason.json").read_text())
    assert "all-reduce over 2 nodes did not end within 8 s" in reason["reason"]
