"""Checks of preflight on one node."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from llm_bridge.remote.node.preflight import checks
from llm_bridge.remote.node.ray import ports


def test_an_interface_that_does_not_exist_is_reported_with_those_that_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LLM_BRIDGE_NETWORK_INTERFACE", "enp25s0np0")
    (fault,) = checks.interface("n1")
    assert "enp25s0np0" in fault and "lo (127.0.0.1)" in fault


def test_a_port_in_use_is_reported_before_torchrun_or_ray_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.rendezvous(4242) == checks.ray_block(4242) == []
    with socket.create_server(("127.0.0.1", 10_242)):
        (fault,) = checks.rendezvous(4242)
        assert "port 10242" in fault
    monkeypatch.setattr(ports, "ports_in_use", lambda block: [block + 7])
    (fault,) = checks.ray_block(4242)
    assert "none of 20 blocks of 1000 ports is free" in fault


@pytest.mark.parametrize("ray", [True, False])
def test_only_a_job_with_ray_needs_a_block_of_rays_ports(
    ray: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_BRIDGE_NETWORK_INTERFACE", "lo")
    monkeypatch.setenv("LLM_BRIDGE_NODES", "n0 n1")
    monkeypatch.setenv("SLURM_JOB_ID", "4242")
    monkeypatch.setattr(ports, "ports_in_use", lambda block: [block + 7])
    wanted = {"gpus_per_node": 0, "device": "cpu", "temp_dir": str(tmp_path), "min_free_gib": 0}
    faults, _ = checks.run({**wanted, "ray": ray, "max_clock_skew_seconds": 60}, "n1", tmp_path)
    assert [fault[:17] for fault in faults] == (["none of 20 blocks"] if ray else [])


def test_too_little_free_space_is_reported_with_the_setting_that_requires_it(tmp_path: Path) -> None:
    (fault,) = checks.free_space(tmp_path / "not" / "yet", 10**9)
    assert fault.startswith(f"{tmp_path} has") and "min_free_gib" in fault
    assert checks.free_space(tmp_path, 0.001) == []


def test_a_clock_is_compared_with_the_file_servers(tmp_path: Path) -> None:
    assert checks.clock(tmp_path, "n1", 0.5) == []
    assert checks.skew(100.0, 99.9, 100.1, 5) == []
    for stamp in (80.0, 120.0):
        (fault,) = checks.skew(stamp, 99.9, 100.1, 5)
        assert "19.9 s off" in fault


def test_connections_are_really_tried() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    assert checks.connects(host, port)
    listener.close()
    assert not checks.connects(host, port)
