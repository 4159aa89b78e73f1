"""Preparation of a node for Ray, and the logs kept after its end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from llm_bridge.remote.node.ray import node_setup
from llm_bridge.remote.node.ray.node_setup import NodeProblem


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 4),
        ({"SLURM_GPUS_ON_NODE": "8"}, 8),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1f,GPU-2a", "SLURM_GPUS_ON_NODE": "8"}, 2),
        ({}, 0),
    ],
)
def test_gpus_are_those_that_slurm_allocated(env: dict[str, str], wanted: int) -> None:
    assert node_setup.usable_gpus(env, wanted) == wanted
    with pytest.raises(NodeProblem, match=f"has {wanted} of {wanted + 1} GPUs"):
        node_setup.usable_gpus(env, wanted + 1)


def test_cpus_are_those_of_the_settings_or_else_the_allocation() -> None:
    slurm = {"SLURM_CPUS_PER_TASK": "64", "SLURM_CPUS_ON_NODE": "128"}
    assert node_setup.usable_cpus(slurm, 8) == 8
    assert node_setup.usable_cpus(slurm, None) == 64
    assert node_setup.usable_cpus({"SLURM_CPUS_ON_NODE": "128"}, None) == 128


def test_ray_start_sets_every_port_and_never_listens_on_all_addresses() -> None:
    common = {
        "name": "n1",
        "address": "10.0.0.1",
        "block": 12_000,
        "cpus": 8,
        "gpus": 4,
        "temp_dir": Path("/tmp/x"),
    }
    head = node_setup.ray_command(gcs=None, object_store_gib=0.5, **common)
    worker = node_setup.ray_command(gcs="10.0.0.9:13000", object_store_gib=None, **common)
    assert {"--head", "--port=12000", "--dashboard-host=10.0.0.1", "--object-store-memory=536870912"} <= set(
        head
    )
    assert "--address=10.0.0.9:13000" in worker and "--head" not in worker
    assert not any("0.0.0.0" in argument for argument in head)
    for argument in head:
        name, _, value = argument.partition("=")
        assert "port" not in name or 12_000 <= int(value) < 13_000, argument


def test_the_folder_on_the_nodes_disk_is_private_and_empty_after_a_requeue() -> None:
    parent = Path("/tmp") / f"rp{os.getpid()}"  # tmp_path is too long for unix sockets
    try:
        first = node_setup.make_folder(parent, "17")
        (first / "old").write_text("")
        folder = node_setup.make_folder(parent, "17")
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700
        assert parent.stat().st_mode & 0o7777 == 0o1777, "other users share it"
    finally:
        subprocess.run(["rm", "-r", str(parent)], check=False)


def test_a_folder_too_long_for_unix_sockets_is_refused_with_the_maximum_length() -> None:
    with pytest.raises(NodeProblem, match=r"choose one with at most \d+"):
        node_setup.make_folder(Path("/scratch/very/long/name/of/a/local/disk"), "1234567")


def test_the_cause_of_rays_end_is_the_process_that_ended(tmp_path: Path) -> None:
    log = tmp_path / "n1.log"
    log.write_text(
        "Some Ray subprocesses exited unexpectedly:\n"
        "2026-11-25 23:13:22,062\tERR scripts.py:87 -- gcs_server [exit code=-9]\n\nRemaining killed.\n"
    )
    assert node_setup.cause(log) == "gcs_server [exit code=-9]"
    log.write_text("Traceback\nValueError: bad port\n")
    assert node_setup.cause(log) == "ValueError: bad port"
    log.write_text("")
    assert node_setup.cause(log) == "no output"


def test_what_ray_said_before_a_requeue_is_not_the_cause(tmp_path: Path) -> None:
    log = tmp_path / "n1.log"
    log.write_text("raylet [exit code=-9]\n")
    before = log.stat().st_size
    with log.open("a") as again:
        again.write("ValueError: bad port\n")
    assert node_setup.cause(log, start=before) == "ValueError: bad port"


# A raylet on a node whose block of ports another cluster had taken (src/ray/rpc/grpc_server.cc, logging.h).
PORT_TAKEN = (
    "[2026-11-26 21:14:03,117 I 3371 3371] (raylet) main.cc:306: Setting cluster ID to: 1b2c\n"
    "[2026-11-26 21:14:03,204 C 3371 3371] (raylet) grpc_server.cc:142:  An unexpected system state has occurred. You "
    "have likely discovered a bug in Ray. Please report this issue at https://github.com/ray-project/ray/issues and "
    "we'll work with you to fix it. Check failed: server_ Failed to start the grpc server. The specified port is 27003."
    " This means that Ray's core components will not be able to function correctly. If the server startup error message"
    " is `Address already in use`, it indicates the server fails to start because the port is already used by other "
    "processes (such as --node-manager-port, --object-manager-port, --gcs-server-port, and ports between "
    "--min-worker-port, --max-worker-port). Try running sudo lsof -i :27003 to check if there are other processes "
    "listening to the port.\n"
    "*** StackTrace Information ***\n"
)
CHECK = "Check failed: node_id.IsNil()\n"


@pytest.mark.parametrize(
    ("output", "logs", "expected"),
    [
        (
            "ray_cli.RayletEnded: the raylet ended during startup, see raylet.out and raylet.err\n",
            {"raylet.out": PORT_TAKEN, "raylet.err": ""},
            "raylet.out: server_ Failed to start the grpc server. The specified port is 27003",
        ),
        (
            "Exception: The current node timed out during startup. This could happen because some of the raylet failed "
            "to startup or the GCS has become overloaded.\n",
            {"raylet.out": "", "raylet.err": PORT_TAKEN},
            "raylet.err: server_ Failed to start the grpc server. The specified port is 27003",
        ),
        (
            "2026-11-25 23:13:22,062\tERR scripts.py:87 -- raylet [exit code=-6]\n",
            {"raylet.out": CHECK},
            "raylet [exit code=-6]: raylet.out: node_id.IsNil()",
        ),
        # What fails after another process was killed is not the cause.
        (
            "2026-11-25 23:13:22,062\tERR scripts.py:87 -- gcs_server [exit code=-9]\n",
            {"raylet.out": CHECK},
            "gcs_server [exit code=-9]",
        ),
        ("ValueError: bad port\n", {"raylet.out": "[I] started\n"}, "ValueError: bad port"),
        ("ValueError: bad port\n", {}, "ValueError: bad port"),
    ],
)
def test_the_cause_of_a_raylets_end_is_in_its_own_logs(
    output: str, logs: dict[str, str], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "n1.log").write_text(output)
    for name, text in logs.items():
        (tmp_path / name).write_text(text)
    assert node_setup.cause(tmp_path / "n1.log", tmp_path) == expected


def test_only_the_ends_of_logs_that_explain_a_failure_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_setup, "MAX_LOG_BYTES", 4)
    logs = tmp_path / "logs"
    logs.mkdir()
    for name, text in (("raylet.out", "0123456789"), ("gcs_server.err", ""), ("worker-1.out", "x")):
        (logs / name).write_text(text)
    node_setup.keep_logs(logs, tmp_path / "kept")
    assert {f.name: f.read_text() for f in (tmp_path / "kept").iterdir()} == {"raylet.out": "6789"}
