"""Ray on a real Slurm cluster of this machine: its start, its head guard, and its end without remains.

Each test takes 15 to 60 s on two cores.
"""

from __future__ import annotations

import json
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from testing.local_cluster import LocalCluster
from testing.ray_job import ENVIRONMENT, RayJob

SEE_CLUSTER = "import ray; ray.init(address='auto'); print('GPUs', int(ray.cluster_resources()['GPU']))"
# Otherwise Slurm here (SlurmdTimeout=10 s, 300 by default) might end the job before Ray marks the node dead.
FAST_HEALTH_CHECK = {"RAY_health_check_failure_threshold": "3"}
# Runs on a node: listens on a port of each of Ray's blocks except the given one, until standard input ends.
LISTEN = """
import socket, sys
others = [block for block in range(10_000, 31_001, 1000) if block != int(sys.argv[1])]
servers = [socket.create_server(("", block + 500)) for block in others]
print("listening", flush=True)
sys.stdin.read()
"""
Submit = Callable[..., RayJob]


@pytest.fixture
def submit(slurm: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Submit]:
    """Submit a Ray cluster; cancel it at the end of the test."""
    jobs: list[RayJob] = []

    def start(nodes: list[str], **settings: Any) -> RayJob:
        jobs.append(RayJob(slurm, f"{request.node.name[:60]}-{len(jobs)}", nodes, **settings).submit())
        return jobs[-1]

    slurm.wait_for_nodes(timeout=120)
    yield start
    for job in jobs:
        job.cancel()
        print(f"--- {job.directory}\n{job.log}")


def assert_nothing_left(job: RayJob, nodes: list[str]) -> None:
    """Assert that the nodes have no process of Ray and no folder of the job."""
    job.wait("end of the job", job.gone, 60)
    for node in nodes:
        assert job.processes(node) == []
        # A node that was powered off under an earlier job still has the folder of that job.
        assert job.job_id not in job.slurm.run(node, ["ls", "/tmp/ray"]).stdout.split()


def test_a_cluster_starts_is_protected_runs_a_job_and_leaves_nothing_when_cancelled(submit: Submit) -> None:
    job = submit(["n1", "n2"])
    cluster = job.wait_ready()
    assert cluster["job_id"] == job.job_id
    assert cluster["head_node"] == "n1"
    assert cluster["nodes"] == [{"name": "n1", "ip": "10.77.0.11"}, {"name": "n2", "ip": "10.77.0.12"}]
    assert (cluster["gpus_per_node"], cluster["total_gpus"]) == (8, 16)
    assert cluster["python"].startswith(f"{ENVIRONMENT}/bin/python")
    phases = cluster["phases"]
    assert list(phases) == ["allocated", "environment", "head_up", "workers_joined", "verified"]
    assert list(phases.values()) == sorted(phases.values())
    ports = [int(address.rsplit(":", 1)[1]) for address in (cluster["gcs_address"], cluster["dashboard"])]
    assert all(10_000 <= port < 32_768 for port in ports)
    for name in (attempt_dir.CLUSTER, attempt_dir.RAY_TOKEN):
        assert stat.S_IMODE((job.directory / name).stat().st_mode) == 0o600, name

    assert job.request("GET", "/api/jobs/")[0] == 401
    assert job.request("GET", "/api/jobs/", "0" * 64)[0] == 403
    assert job.request("POST", "/api/jobs/", None, {"entrypoint": "true"})[0] == 401
    listening = job.slurm.run("n1", ["ss", "-Hltn"]).stdout
    assert f"10.77.0.11:{ports[1]}" in listening and f"0.0.0.0:{ports[1]}" not in listening
    outside = [line.split()[3] for line in listening.splitlines()]
    ray = [
        int(a.rsplit(":", 1)[1]) for a in outside if ports[0] <= int(a.rsplit(":", 1)[1]) < ports[0] + 1000
    ]
    assert len(ray) > 8, "Ray's ports lie in the block"

    # Size and place of Ray's files on a node follow the settings.
    rows = json.loads(job.request("GET", "/api/v0/nodes?detail=0", job.token())[1])["data"]["result"][
        "result"
    ]
    stores = [row["resources_total"]["object_store_memory"] for row in rows]
    assert [round(store / 2**30, 2) for store in stores] == [0.3, 0.3]
    assert job.slurm.run("n2", ["ls", f"/tmp/ray/{job.job_id}/ray"]).returncode == 0

    # As the wrapper of verl does: by RAY_ADDRESS, with the token's path inherited.
    info, output = job.run_ray_job(SEE_CLUSTER)
    assert info["status"] == "SUCCEEDED", output
    assert "GPUs 16" in output
    for node in job.nodes:  # the token is in a file only: in no process's environment or arguments
        look = ["grep", "-rlsaF", "/proc", "--include=environ", "--include=cmdline"]
        assert job.slurm.run(node, [*look, "-e", "RAY_AUTH_TOKEN_PATH="]).stdout != ""
        assert job.slurm.run(node, [*look, "-f", str(job.directory / attempt_dir.RAY_TOKEN)]).stdout == ""
    # No other user of the node can read Ray's sockets and logs.
    assert job.slurm.run("n1", ["ls", f"/tmp/ray/{job.job_id}"], user="other").returncode != 0

    before = time.monotonic()
    job.cancel()
    print(f"cancelled in {time.monotonic() - before:.1f} s")
    assert_nothing_left(job, ["n1", "n2"])
    assert not (job.directory / attempt_dir.REASON).exists()
    assert job.json(attempt_dir.OUTCOME)["exit_code"] == 143


def test_a_cluster_avoids_ports_in_use(slurm: LocalCluster, submit: Submit) -> None:
    """One port of each block except one is in use; the free block differs between head and worker."""
    free = {"n1": 14_000, "n2": 27_000}
    programs = []
    try:
        for node, block in free.items():
            argv = slurm.exec_argv(node, ["/usr/bin/python3", "-c", LISTEN, str(block)])
            programs.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for program in programs:
            assert program.stdout and program.stdout.readline() == "listening\n"
        job = submit(["n1", "n2"])
        assert job.wait_ready()["gcs_address"] == "10.77.0.11:14000"
        assert {
            node: job.json(f"{attempt_dir.RAY_NODES}/{attempt_dir.node_report(node)}")["block"]
            for node in free
        } == free
    finally:
        for program in programs:
            program.communicate()  # it ends with its standard input


def test_two_clusters_share_their_nodes(submit: Submit) -> None:
    jobs = [submit(["n1", "n2"], gpus_per_node=4) for _ in range(2)]
    clusters = [job.wait_ready() for job in jobs]
    assert clusters[0]["gcs_address"] != clusters[1]["gcs_address"]
    assert [cluster["total_gpus"] for cluster in clusters] == [8, 8]
    for job, other in zip(jobs, reversed(jobs), strict=True):
        assert job.request("GET", "/api/jobs/", other.token())[0] == 403
        assert "GPUs 8" in job.run_ray_job(SEE_CLUSTER)[1]
    jobs[0].cancel()
    time.sleep(10)  # three checks of the guard: the other cluster is not affected
    assert jobs[1].request("GET", "/api/gcs_healthz")[0] == 200


def test_a_dead_gcs_ends_the_job_and_names_the_head(submit: Submit) -> None:
    job = submit(["n1", "n2"])
    job.wait_ready()
    job.kill("n1", "gcs_server")
    before = time.monotonic()
    outcome = job.wait_over(40)
    print(f"reported after {time.monotonic() - before:.1f} s")
    reason = job.json(attempt_dir.REASON)
    assert reason["nodes"] == ["n1"] and "gcs_server [exit code=-9]" in reason["reason"], reason
    assert outcome["exit_code"] == 1
    assert_nothing_left(job, ["n1", "n2"])
    assert list((job.directory / attempt_dir.RAY_LOGS / "n1").glob("gcs_server*")), "its log was copied"


def test_a_gcs_that_hangs_ends_the_job_and_names_the_head(submit: Submit) -> None:
    job = submit(["n1", "n2"])
    job.wait_ready()
    job.kill("n1", "gcs_server", "STOP")
    before = time.monotonic()
    job.wait_over(90)
    print(f"reported after {time.monotonic() - before:.1f} s")
    reason = job.json(attempt_dir.REASON)
    assert reason["nodes"] == ["n1"] and reason["reason"].startswith("GCS on n1 does not answer"), reason
    assert_nothing_left(job, ["n1", "n2"])


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_killed_head_or_worker_ends_the_job_and_is_named(submit: Submit, node: str) -> None:
    job = submit(["n1", "n2"])
    job.wait_ready()
    job.kill(node, "raylet/raylet")
    before = time.monotonic()
    job.wait_over(40)
    print(f"reported after {time.monotonic() - before:.1f} s")
    reason = job.json(attempt_dir.REASON)
    assert reason["nodes"] == [node] and "raylet [exit code=-9]" in reason["reason"], reason
    assert_nothing_left(job, ["n1", "n2"])


def test_a_worker_whose_network_is_cut_is_named(slurm: LocalCluster, submit: Submit) -> None:
    job = submit(["n1", "n2"], variables=FAST_HEALTH_CHECK)
    job.wait_ready()
    before = time.monotonic()
    slurm.cut("n2")
    try:
        job.wait_over(120)
    finally:
        slurm.join("n2")
    print(f"ended after {time.monotonic() - before:.1f} s; Slurm: {job.state()}")
    if (job.directory / attempt_dir.REASON).exists():
        reason = job.json(attempt_dir.REASON)
        assert reason["nodes"] == ["n2"] and "n2" in reason["reason"], reason
    else:  # Slurm noticed it first (SlurmdTimeout) and ended the job
        assert "Node failure on n2" in job.log and "Slurm ends this job" in job.log


def test_a_worker_that_is_powered_off_is_named(slurm: LocalCluster, submit: Submit) -> None:
    job = submit(["n1", "n3"], variables=FAST_HEALTH_CHECK)
    job.wait_ready()
    before = time.monotonic()
    slurm.power_off("n3")
    try:
        job.wait_over(120)
        print(f"ended after {time.monotonic() - before:.1f} s; Slurm: {job.state()}")
        reason = job.json(attempt_dir.REASON)
        assert reason["nodes"] == ["n3"] and "worker n3 died" in reason["reason"], reason
    finally:
        slurm.power_on("n3")


def test_a_node_that_cannot_join_is_named_at_the_deadline(slurm: LocalCluster, submit: Submit) -> None:
    job = submit(["n1", "n2"], ready_minutes=1)
    job.wait(
        "the worker",
        lambda: (job.directory / attempt_dir.RAY_NODES / attempt_dir.node_report("n2")).exists(),
        20,
    )
    job.kill("n2", "ray-node-agent", "STOP")
    outcome = job.wait_over(90)
    reason = job.json(attempt_dir.REASON)
    assert reason["nodes"] == ["n2"]
    assert reason["reason"].startswith("1 of 2 nodes did not join within 1 minutes: n2 ("), reason
    assert outcome["exit_code"] == 1
    assert not (job.directory / attempt_dir.CLUSTER).exists()


def test_a_node_with_too_few_gpus_is_named_at_once(slurm: LocalCluster, submit: Submit) -> None:
    job = RayJob(slurm, "few", ["n1", "n2"], gpus_per_node=4)
    job.allocated_gpus = 2  # the job asks Slurm for fewer than the settings
    job.submit()
    job.wait_over(30)
    reason = job.json(attempt_dir.REASON)
    assert set(reason["nodes"]) <= {"n1", "n2"} and "has 2 of 4 GPUs in its allocation" in reason["reason"]
    assert_nothing_left(job, ["n1", "n2"])


def test_a_cluster_without_jobs_ends_itself_but_not_while_one_runs(submit: Submit) -> None:
    job = submit(["n1"], idle_minutes=0.15)
    job.wait_ready()
    info, _ = job.run_ray_job("import time; time.sleep(15)")
    assert info["status"] == "SUCCEEDED", "a running job is longer than the idle limit of 9 s"
    outcome = job.wait_over(40)
    assert outcome["exit_code"] == 0
    assert job.json(attempt_dir.REASON)["reason"] == "idle"
    assert_nothing_left(job, ["n1"])
    assert json.loads((job.directory / attempt_dir.CLUSTER).read_text())["total_gpus"] == 8
