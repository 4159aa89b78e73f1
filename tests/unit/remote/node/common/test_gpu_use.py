"""Samples of the use of a node's GPUs; nvidia-smi is a script here, as this machine has no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common import gpu_use
from testing.waiting import until


def test_each_gpu_is_one_object_without_the_values_that_it_does_not_report() -> None:
    text = "0, 93, 71000, 81559\n1, [N/A], 12, 81559\nNo devices were found\n"
    assert gpu_use.parse(text) == [
        {"index": 0.0, "percent": 93.0, "memory_mib": 71000.0, "total_mib": 81559.0},
        {"index": 1.0, "memory_mib": 12.0, "total_mib": 81559.0},
    ]


def test_samples_are_appended_while_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '0, 50, 100, 200'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    file = tmp_path / attempt_dir.gpu_use("n1")
    with gpu_use.sampled(tmp_path, interval=0.05):
        until(lambda: file.exists() and len(file.read_text().splitlines()) > 1, 60)
    row = json.loads(file.read_text().splitlines()[0])
    assert row["gpus"][0]["percent"] == 50.0 and row["time"] > 0


def test_a_node_without_nvidia_smi_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with gpu_use.sampled(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
