"""The parts of the Ray cluster job that decide something, without a cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray_guard
import ray_health
import ray_memory
import ray_network
import ray_ports
import ray_setup
import ray_supervise
from job_io import write_json
from ray_health import Seen, Watch
from ray_job import cluster_file
from ray_reports import NodeReports
from ray_setup import NodeProblem

from llm_bridge.slurm.job import SlurmJob
from llm_bridge.slurm.script import render

GOLDEN = Path(__file__).parent / "golden" / "ray_cluster.sh"


def row(name: str, gpus: int = 8, state: str = "ALIVE", message: str | None = None) -> dict:
    return {
        "node_name": name,
        "state": state,
        "state_message": message,
        "resources_total": {"GPU": float(gpus)},
    }


def report(state: str, message: str = "", at: float = 0.0) -> dict:
    return {"state": state, "message": message, "at": at}


# ---- ports


def test_blocks_lie_below_the_ephemeral_range() -> None:
    assert ray_ports.blocks(32768) == list(range(10_000, 31_001, 1000))
    assert ray_ports.blocks(49152)[-1] == 31_000, "never higher: other systems' ranges begin at 32768"
    assert ray_ports.blocks(15_500) == [10_000, 11_000, 12_000, 13_000, 14_000]
    assert ray_ports.blocks(1024) == ray_ports.blocks(32768), "no room under it: better some block than none"


def test_every_port_of_a_block_is_its_own() -> None:
    ports = ray_ports.ports(12_000)
    assert len(set(ports.values())) == len(ports)
    assert all(12_000 <= port < 13_000 for port in ports.values())


def test_neighbouring_jobs_look_at_different_blocks_first() -> None:
    blocks = ray_ports.blocks(32768)
    assert ray_ports.choose(100, blocks, lambda _: []) != ray_ports.choose(101, blocks, lambda _: [])


def test_a_block_with_a_taken_port_is_passed_over() -> None:
    blocks = [10_000, 11_000, 12_000]
    busy = {11_000: [11_001], 12_000: [12_500]}
    assert ray_ports.choose(1, blocks, lambda block: busy.get(block, [])) == 10_000


def test_no_free_block_is_an_error_that_says_what_is_in_use() -> None:
    with pytest.raises(RuntimeError, match=r"none of 2 blocks .* in use: 10007, 11007"):
        ray_ports.choose(0, [10_000, 11_000], lambda block: [block + 7])


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_listening_program_is_noticed_on_whatever_address(address: str) -> None:
    block = next(b for b in ray_ports.blocks(32768) if not ray_ports.taken(b))
    with socket.socket() as server:
        server.bind((address, block + 3))
        server.listen()
        assert ray_ports.taken(block) == [block + 3]
    assert ray_ports.taken(block) == []


# ---- addresses


def test_an_interface_pattern_means_what_it_means_to_nccl() -> None:
    have = ["lo", "eth0", "ib0", "ib1"]
    assert ray_network.matching("eth0", have) == ["eth0"]
    assert ray_network.matching("ib", have) == ["ib0", "ib1"]
    assert ray_network.matching("=ib", have) == []
    assert ray_network.matching("enp25s0np0,ib1", have) == ["ib1"]


def test_an_interface_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(RuntimeError, match=r"network_interface 'enp25s0np0' .* is not on n7; it has lo"):
        ray_network.node_address("n7", "enp25s0np0")


def test_the_interfaces_address_is_used() -> None:
    assert ray_network.node_address("n7", "lo") == "127.0.0.1"


# ---- topology


def test_host_names_are_taken_in_slurms_order() -> None:
    assert ray_guard.parse_host_names("gpu9\ngpu10\ngpu2\n") == ["gpu9", "gpu10", "gpu2"]
    with pytest.raises(ValueError):
        ray_guard.parse_host_names("\n")


# ---- readiness


@pytest.mark.parametrize(
    ("rows", "missing"),
    [
        ([], {"n1": "has not joined", "n2": "has not joined"}),
        ([row("n1")], {"n2": "has not joined"}),
        ([row("n1"), row("n2", gpus=6)], {"n2": "joined with 6 of 8 GPUs"}),
        ([row("n1"), row("n2"), row("stranger")], {}),
        ([row("n1"), row("n2", state="DEAD")], {"n2": "has not joined"}),
        (
            [row("n1"), {"node_name": "n2", "state": "ALIVE", "resources_total": None}],
            {"n2": "joined with 0 of 8 GPUs"},
        ),
    ],
)
def test_a_cluster_is_ready_when_every_node_is_alive_with_its_gpus(rows: list[dict], missing: dict) -> None:
    assert ray_health.missing(rows, ["n1", "n2"], 8) == missing


def test_nodes_that_did_not_join_are_named_with_what_they_said_last() -> None:
    gone = {"n2": "has not joined", "n3": "has not joined", "n4": "joined with 4 of 8 GPUs"}
    verdict = ray_health.not_joined(
        gone, {"n2": report("waiting", "waits for the head at 10.0.0.1:10000")}, 5, 15
    )
    assert verdict.reason == (
        "3 of 5 nodes did not join within 15 minutes: n2 (waits for the head at 10.0.0.1:10000), n3 (gave no sign of"
        " life: srun could not start its task), n4 (joined with 4 of 8 GPUs)"
    )
    assert verdict.as_json()["node"] == "n2" and verdict.exit_code == 1


# ---- health


def test_the_gcs_has_to_fail_three_times_in_a_row() -> None:
    watch = Watch(["n1", "n2"], 0, None)
    assert [watch.look(Seen(t, gcs_error=error)) for t, error in enumerate(["x", "x", None, "x", "x"])] == [
        None
    ] * 5
    verdict = watch.look(Seen(6, gcs_error="HTTP 503"))
    assert verdict is not None
    assert verdict.as_json() == {
        "reason": "GCS on n1 does not answer (HTTP 503)",
        "kind": "gcs_dead",
        "retry": True,
        "node": "n1",
        "nodes": ["n1"],
    }


def test_a_worker_that_ray_has_given_up_is_named_at_once() -> None:
    rows = [row("n1"), row("n2", state="DEAD", message="missing too many heartbeats")]
    verdict = Watch(["n1", "n2"], 0, None).look(Seen(1, rows=rows))
    assert verdict is not None
    assert verdict.reason == "worker n2 died (missing too many heartbeats)"


def test_of_several_failed_nodes_the_first_one_is_the_cause() -> None:
    reports = {"n1": report("failed", "lost its head", 20), "n2": report("failed", "was killed", 10)}
    verdict = Watch(["n1", "n2"], 0, None).look(Seen(1, reports=reports, step_code=1))
    assert verdict is not None
    assert verdict.nodes == ("n2", "n1")
    assert verdict.reason == "n2: was killed; n1: lost its head"


def test_the_end_of_srun_ends_the_cluster() -> None:
    reports = {"n1": report("running"), "n2": report("stopped")}
    verdict = Watch(["n1", "n2"], 0, None).look(Seen(1, reports=reports, step_code=137))
    assert verdict is not None
    assert "137" in verdict.reason and verdict.nodes == ("n1",)


def test_a_cluster_is_idle_only_when_it_is_known_that_no_job_ran_for_so_long() -> None:
    watch = Watch(["n1"], 0, idle_minutes=1)
    assert watch.look(Seen(59, busy=False)) is None
    assert watch.look(Seen(61, busy=True)) is None
    assert watch.look(Seen(100, busy=None)) is None, "unknown is never read as idle"
    assert watch.look(Seen(159, busy=False)) is None
    verdict = watch.look(Seen(160, busy=False))
    assert verdict is not None
    assert (verdict.as_json()["reason"], verdict.exit_code) == ("idle", 0)


def test_without_idle_minutes_a_cluster_stays_for_ever() -> None:
    assert Watch(["n1"], 0, None).look(Seen(1e9, busy=False)) is None


@pytest.mark.parametrize(("states", "busy"), [([], False), (["SUCCEEDED", "FAILED", "STOPPED"], False)])
def test_ended_jobs_do_not_keep_a_cluster_busy(states: list[str], busy: bool) -> None:
    assert ray_health.busy([{"status": state} for state in states]) is busy
    assert ray_health.busy([{"status": state} for state in [*states, "PENDING"]]) is True


# ---- a node


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 4),
        ({"SLURM_GPUS_ON_NODE": "8"}, 8),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1f,GPU-2a", "SLURM_GPUS_ON_NODE": "8"}, 2),
        ({}, 0),
    ],
)
def test_gpus_are_those_that_slurm_really_gave(env: dict[str, str], wanted: int) -> None:
    assert ray_setup.usable_gpus(env, wanted) == wanted
    with pytest.raises(NodeProblem, match=f"has {wanted} of {wanted + 1} GPUs"):
        ray_setup.usable_gpus(env, wanted + 1)


def test_cpus_are_the_settings_then_the_allocations() -> None:
    slurm = {"SLURM_CPUS_PER_TASK": "64", "SLURM_CPUS_ON_NODE": "128"}
    assert ray_setup.usable_cpus(slurm, 8) == 8
    assert ray_setup.usable_cpus(slurm, None) == 64
    assert ray_setup.usable_cpus({"SLURM_CPUS_ON_NODE": "128"}, None) == 128


def test_ray_is_told_every_port_and_never_listens_on_all_addresses() -> None:
    common = {
        "name": "n1",
        "address": "10.0.0.1",
        "block": 12_000,
        "cpus": 8,
        "gpus": 4,
        "temp_dir": Path("/tmp/x"),
    }
    head = ray_setup.ray_command(gcs=None, object_store_gib=0.5, **common)
    worker = ray_setup.ray_command(gcs="10.0.0.9:13000", object_store_gib=None, **common)
    assert {"--head", "--port=12000", "--dashboard-host=10.0.0.1", "--object-store-memory=536870912"} <= set(
        head
    )
    assert "--address=10.0.0.9:13000" in worker and "--head" not in worker
    assert not any("0.0.0.0" in argument for argument in head)
    for argument in head:
        name, _, value = argument.partition("=")
        assert "port" not in name or 12_000 <= int(value) < 13_000, argument


def test_the_folder_on_the_nodes_disk_is_private_and_free_of_an_earlier_life() -> None:
    parent = Path("/tmp") / f"rp{os.getpid()}"  # tmp_path is too long for unix sockets
    try:
        first = ray_setup.make_folder(parent, "17")
        (first / "old").write_text("")
        folder = ray_setup.make_folder(parent, "17")
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700
        assert parent.stat().st_mode & 0o7777 == 0o1777, "other users share it"
    finally:
        subprocess.run(["rm", "-r", str(parent)], check=False)


def test_a_folder_too_long_for_unix_sockets_is_refused_with_the_room_there_is() -> None:
    with pytest.raises(NodeProblem, match=r"choose one with at most \d+"):
        ray_setup.make_folder(Path("/scratch/very/long/name/of/a/local/disk"), "1234567")


def test_the_cause_of_rays_end_is_the_process_that_ended(tmp_path: Path) -> None:
    log = tmp_path / "n1.log"
    log.write_text(
        "Some Ray subprocesses exited unexpectedly:\n"
        "2026-11-25 23:13:22,062\tERR scripts.py:87 -- gcs_server [exit code=-9]\n\nRemaining killed.\n"
    )
    assert ray_setup.cause(log) == "gcs_server [exit code=-9]"
    log.write_text("Traceback\nValueError: bad port\n")
    assert ray_setup.cause(log) == "ValueError: bad port"
    log.write_text("")
    assert ray_setup.cause(log) == "it said nothing"


def test_only_the_ends_of_telling_logs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_setup, "LOG_BYTES_KEPT", 4)
    logs = tmp_path / "logs"
    logs.mkdir()
    for name, text in (("raylet.out", "0123456789"), ("gcs_server.err", ""), ("worker-1.out", "x")):
        (logs / name).write_text(text)
    ray_setup.keep_logs(logs, tmp_path / "kept")
    assert {f.name: f.read_text() for f in (tmp_path / "kept").iterdir()} == {"raylet.out": "6789"}


def test_reports_of_nodes_are_read_back_and_half_written_ones_left_out(tmp_path: Path) -> None:
    reports = NodeReports(tmp_path)
    assert reports.read() == {}
    reports.write("gpu-1.site.org", {"state": "running", "message": ""})
    (tmp_path / "ray_nodes" / "n9.json").write_text("{")
    assert list(reports.read()) == ["gpu-1.site.org"]


def test_what_a_requeued_job_left_behind_is_not_taken_for_todays(tmp_path: Path) -> None:
    for name in ("cluster.json", "reason.json", "settings.json"):
        write_json(tmp_path / name, {})
    NodeReports(tmp_path).write("n1", report("failed"))
    ray_guard.forget_earlier_life(tmp_path)
    assert [f.name for f in tmp_path.rglob("*.json")] == ["settings.json"]


def test_no_descendant_survives_the_end_not_even_one_that_hides_and_ignores_signals(tmp_path: Path) -> None:
    hidden = "trap '' TERM USR1; sleep 300 & wait"
    program = f"""
import os, pathlib, sys, time
sys.path.insert(0, {str(Path(ray_supervise.__file__).parent)!r})
import ray_supervise
ray_supervise.adopt_orphans()
log = pathlib.Path({str(tmp_path / "log")!r})
pid, let_go = ray_supervise.start_held(["/bin/bash", "-c", "setsid bash -c \\"{hidden}\\" & exit 0"], log)
let_go()
time.sleep(0.5)
found = ray_supervise.descendants(os.getpid())
assert len(found) >= 2, found
ray_supervise.end_children(0.3)
assert ray_supervise.descendants(os.getpid()) == []
"""
    before = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
    assert time.monotonic() - before < 10


# ---- the batch script


def script(**cluster: object) -> str:
    job = SlurmJob.model_validate({"cluster": "x", "template": "ray_cluster", "directory": "/w"})
    return render(job, cluster_file(Path("/w"), {}, **cluster), "/w/attempt-1")


def own_part(text: str) -> str:
    """What ray_cluster.sh.j2 adds to batch.sh.j2."""
    return text[text.index("export LLM_BRIDGE_NETWORK_INTERFACE=") :]


@pytest.mark.parametrize(
    "environment",
    [{"venv": "/e"}, {"container": "/i.sif"}, {"container": "docker://i", "container_runtime": "pyxis"}],
)
def test_the_script_is_correct_bash_in_every_environment(environment: dict) -> None:
    text = script(environment=environment)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    # The guard calls srun and scontrol, which no container has.
    guard = "/usr/bin/python3" if "container" in environment else "python3"
    assert f'\nattend {guard} -u "$JOBS_DIR/ray_guard.py"' in text


def test_the_script_is_the_one_that_was_reviewed() -> None:
    text = own_part(script())
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "run with UPDATE_GOLDEN=1 and review the difference"


# ---- memory


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/job_7/step_0\n", "job_7/step_0/memory.events"),
        ("5:cpu:/other\n4:memory:/job_7/step_0\n", "memory/job_7/step_0/memory.oom_control"),
    ],
)
def test_processes_that_the_kernel_killed_for_memory_are_counted(tmp_path: Path, own: str, file: str) -> None:
    counter = tmp_path / file
    counter.parent.mkdir(parents=True)
    counter.write_text("low 0\noom 3\noom_kill 2\n")
    assert ray_memory.kills(own, tmp_path) == 2
    counter.write_text("low 0\noom 3\noom_kill 0\n")
    assert ray_memory.kills(own, tmp_path) == 0


def test_without_a_cgroup_nothing_is_said_of_memory(tmp_path: Path) -> None:
    assert ray_memory.kills("0::/job_7\n", tmp_path) == 0
    assert ray_memory.hint("0::/\n") == ray_memory.hint("nonsense") == ""
