"""The local cluster behaves as a real Slurm site does."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testing.local_cluster import LocalCluster, LocalClusterError, Settings
from testing.local_cluster.namespaces import NETWORK, Namespaces
from testing.waiting import until

REPOSITORY = Path(__file__).parents[2]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "testing.local_cluster", *arguments]
    return subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def processes(cluster: LocalCluster) -> list[int]:
    spaces = Namespaces(cluster.settings.name)
    return [pid for pids in spaces.processes(spaces.present()).values() for pid in pids]


def listeners() -> list[tuple[str, str]]:
    """(local address, owners) of every listening TCP socket in the machine's own network namespace."""
    out = subprocess.run(["ss", "-H", "-ltnp"], capture_output=True, text=True, check=True).stdout
    return [(line.split()[3], line.split(maxsplit=5)[-1]) for line in out.splitlines()]


# ---- an up cluster


def test_the_user_sees_four_idle_nodes_with_eight_gpus_over_ssh(cluster, ssh):
    rows = ssh("hostname; id -un; sinfo -h -N -p main -o '%N %T %G'").stdout.splitlines()
    assert rows[:2] == ["login", "svc"]
    assert rows[2:] == [f"n{i} idle gpu:8" for i in (1, 2, 3, 4)]


def test_a_two_node_job_sees_two_hosts_with_addresses_and_gpus_of_their_own(cluster, ssh):
    script = "echo $(hostname) $(hostname -I) $CUDA_VISIBLE_DEVICES"
    rows = ssh(f"srun -N2 --gpus-per-node=2 bash -c '{script}'").stdout.splitlines()
    assert sorted(rows) == ["n1 10.77.0.11 0,1", "n2 10.77.0.12 0,1"]


def test_jobs_share_the_workspace_but_not_tmp_shared_memory_or_a_way_out(cluster, ssh):
    ssh(f"srun -w n1 bash -c 'echo from-n1 > {cluster.workspace}/shared.txt; touch /tmp/own /dev/shm/own'")
    assert ssh(f"srun -w n2 cat {cluster.workspace}/shared.txt").stdout == "from-n1\n"
    assert (cluster.workspace / "shared.txt").read_text() == "from-n1\n"
    assert ssh("srun -w n2 ls /tmp/own /dev/shm/own", check=False).returncode != 0
    assert not Path("/tmp/own").exists()
    assert cluster.run("n1", ["ip", "route", "show", "default"]).stdout == ""


def test_the_machines_accounts_are_left_alone(cluster):
    assert cluster.run("n1", ["id", "-u"], user="svc").stdout == "61001\n"
    assert cluster.run("n1", ["pwd"], user="other").stdout == f"{cluster.settings.shared_dir}/home/other\n"
    assert str(cluster.settings.state_dir) not in Path("/etc/passwd").read_text()


def test_accounts_and_login_survive_that_the_machine_replaces_its_account_files(cluster, ssh):
    """Installing a Debian package that adds a user does that: a copy is renamed over /etc/passwd."""
    for name in ("passwd", "group", "shadow"):
        copy = Path(f"/etc/{name}.llm-bridge-test")
        subprocess.run(["cp", "-p", f"/etc/{name}", copy], check=True)
        copy.rename(f"/etc/{name}")
    assert cluster.run("n1", ["id", "-u"], user="svc").stdout == "61001\n"
    assert ssh("id -un").stdout == "svc\n"
    assert cluster.status().problems() == []


def test_status_reports_a_login_that_fails(cluster):
    keys = cluster.settings.etc_dir / "ssh" / "authorized_keys" / "svc"
    text = keys.read_text()
    try:
        keys.write_text("")
        assert cluster.status().problems() == ["no login at svc@127.0.0.1:22122"]
        assert "(fails)" in cluster.status().table()
    finally:
        keys.write_text(text)


def test_accounting_remembers_a_finished_job(cluster, ssh):
    job = ssh("sbatch --parsable --wait --wrap 'exit 3' -o /dev/null", check=False).stdout.strip()
    until(
        lambda: "FAILED|3:0" in ssh(f"sacct -nXP -j {job} -o State,ExitCode").stdout,
        what="FAILED 3:0 in sacct",
    )


def test_only_loopback_is_listened_on_outside_the_namespaces(cluster):
    pids = {f"pid={pid}," for pid in processes(cluster)}
    ours = [address for address, owners in listeners() if any(pid in owners for pid in pids)]
    assert ours == ["127.0.0.1:22122"]


def test_a_second_up_changes_nothing(cluster):
    before = Namespaces("lctest").init_pids(cluster.settings.host_names)
    assert cluster.up() is False
    assert Namespaces("lctest").init_pids(cluster.settings.host_names) == before
    with pytest.raises(LocalClusterError, match="up with other settings"):
        LocalCluster("lctest", ssh_port=22122, nodes=2).up()


def test_status_shows_every_host_daemon_and_node_to_people_and_programs(cluster):
    seen = json.loads(cli("status", "--name", "lctest", "--json").stdout)
    assert seen["problems"] == [] and seen["ssh"] == "svc@127.0.0.1:22122"
    hosts = {host["name"]: host for host in seen["hosts"]}
    assert list(hosts["ctl"]["daemons"]) == ["munged", "mariadbd", "slurmdbd", "slurmctld"]
    assert hosts["n3"]["node_state"] == "idle" and hosts["n3"]["ip"] == "10.77.0.13"
    assert "svc@127.0.0.1" in cli("status", "--name", "lctest").stdout


def test_a_program_that_takes_too_long_is_ended_inside_the_host(cluster):
    with pytest.raises(subprocess.TimeoutExpired):
        cluster.run("n1", ["sleep", "7654"], timeout=0.3)
    until(lambda: "7654" not in cluster.run("n1", ["ps", "-eo", "args"]).stdout, what="no sleep left")


# ---- services


def test_a_service_gets_a_host_that_all_hosts_and_the_machine_can_reach(cluster, tmp_path):
    (tmp_path / "greeting.txt").write_text("hello")
    argv = [sys.executable, "-m", "http.server", "8000", "--directory", str(tmp_path)]
    fetch = "from urllib.request import urlopen; print(urlopen('http://{}/greeting.txt').read().decode())"
    cluster.start_service("hub", 22180, 8000, argv)
    try:
        inside = cluster.run("n1", ["/usr/bin/python3", "-c", fetch.format("hub:8000")], user="svc")
        outside = subprocess.run(
            [sys.executable, "-c", fetch.format("127.0.0.1:22180")], capture_output=True, text=True
        )
        assert (inside.stdout, outside.stdout) == ("hello\n", "hello\n")
        assert "127.0.0.1:22180 -> hub:8000" in cluster.status().table()
    finally:
        cluster.stop_service("hub")
    assert not any(address.endswith(":22180") for address, _ in listeners())
    assert cluster.status().problems() == []


def test_a_service_that_fails_shows_what_it_said(cluster):
    with pytest.raises(LocalClusterError, match="no such luck"):
        cluster.start_service("hub", 22180, 8000, [sys.executable, "-c", "raise SystemExit('no such luck')"])
    assert cluster.status().problems() == []


# ---- faults


def test_a_restart_of_slurmctld_leaves_a_running_job_unharmed(cluster, ssh):
    go, output = cluster.workspace / "go", cluster.workspace / "unharmed.txt"
    script = f"until [ -e {go} ]; do sleep 0.1; done; echo restarts=$SLURM_RESTART_COUNT"
    job = ssh(f"sbatch --parsable -o {output} --wrap '{script}'").stdout.strip()
    until(lambda: ssh(f"squeue -h -j {job} -o %T").stdout == "RUNNING\n", what="running")
    assert cli("restart", "slurmctld", "--name", "lctest").returncode == 0
    assert ssh(f"squeue -h -j {job} -o %T").stdout == "RUNNING\n"
    go.touch()
    until(lambda: ssh(f"sacct -nXP -j {job} -o State").stdout == "COMPLETED\n", what="completed")
    assert output.read_text() == "restarts=\n"


def test_a_killed_slurmctld_stays_down_until_it_is_started(cluster):
    cluster.kill("slurmctld")
    assert "slurmctld on ctl is down" in cluster.status().problems()
    cluster.start("slurmctld")
    cluster.wait_for_nodes()
    assert cluster.status().problems() == []


def test_a_stopped_sshd_refuses_connections_until_it_is_started(cluster, ssh):
    cluster.stop("sshd")
    until(lambda: "Connection refused" in ssh("true", check=False).stderr, seconds=120, what="refused")
    cluster.start("sshd")
    until(lambda: ssh("true", check=False).returncode == 0, seconds=120, what="login")


def test_a_node_that_is_cut_cannot_be_reached_until_it_is_joined(cluster):
    reach = ["timeout", "3", "bash", "-c", ": </dev/tcp/n3/6818"]
    until(lambda: cluster.run("login", reach).returncode == 0, what="reachable")
    cluster.cut("n3")
    assert cluster.run("login", reach).returncode != 0
    assert "n3 is disconnected from the network" in cluster.status().problems()
    cluster.join("n3")
    until(lambda: cluster.run("login", reach).returncode == 0, what="reachable again")
    cluster.wait_for_nodes(["n3"])


def test_a_job_on_a_node_without_power_fails_and_the_node_comes_back(cluster, ssh):
    job = ssh("sbatch --parsable --no-requeue -w n4 -o /dev/null --wrap 'sleep 300'").stdout.strip()
    until(lambda: ssh(f"squeue -h -j {job} -o %T").stdout == "RUNNING\n", what="running")
    cluster.power_off("n4")
    assert "n4 is off" in cluster.status().problems()
    until(lambda: "NODE_FAIL" in ssh(f"sacct -nXP -j {job} -o State").stdout, seconds=120, what="NODE_FAIL")
    cluster.power_on("n4")
    cluster.wait_for_nodes(["n4"])
    assert ssh("srun -w n4 hostname").stdout == "n4\n"


# ---- start and end


def test_a_second_cluster_stands_beside_the_first_survives_a_crash_and_leaves_nothing(cluster):
    small = LocalCluster("lctesttwo", ssh_port=22123, nodes=1, gpus_per_node=2, accounting=False)
    spaces = Namespaces("lctesttwo")
    small.down(wipe=True)
    try:
        assert small.up() is True
        key = small.ssh_key.read_text()
        # A crash: some hosts and the relay gone, the others and all namespaces left behind.
        small.power_off("login")
        small.power_off("ctl")
        for pid in spaces.processes([NETWORK])[NETWORK]:
            os.kill(pid, signal.SIGKILL)
        assert {"ctl is off", "login is off"} < set(small.status().problems())
        assert small.up() is True
        assert small.status().problems() == []
        assert small.ssh_key.read_text() == key
        pids = processes(small)
    finally:
        small.down(wipe=True)
    assert not [pid for pid in pids if Path(f"/proc/{pid}/ns/net").exists()]
    assert spaces.present() == []
    assert "lctesttwo" not in Path("/proc/self/mountinfo").read_text()
    assert not any(address.endswith(":22123") for address, _ in listeners())
    assert not small.settings.state_dir.exists()
    assert cluster.status().problems() == [], "the first cluster was disturbed"


def test_a_cluster_of_the_same_name_in_another_home_is_another_cluster(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_BRIDGE_HOME", str(tmp_path))
    stranger = LocalCluster("lctest", ssh_port=22123)
    stranger.down()
    assert stranger.status().up is False
    monkeypatch.undo()
    assert cluster.status().problems() == []


def test_a_taken_port_is_named_before_anything_starts(cluster):
    small = LocalCluster("lctesttwo", ssh_port=22122, nodes=1, accounting=False)
    with pytest.raises(LocalClusterError, match=r"127\.0\.0\.1:22122.*--ssh-port"):
        small.up()
    assert Namespaces("lctesttwo").present() == []


# ---- what is missing is said


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch, tmp_path):
    monkeypatch.setattr("testing.local_cluster.checks.SEARCH_PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(LocalClusterError, match=r"apt-get install .* mariadb-server .*munge .*slurm-wlm"):
        LocalCluster("lctesttwo", ssh_port=22123).up()


def test_the_error_for_a_plain_user_names_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LocalClusterError, match="needs root"):
        LocalCluster("lctesttwo", ssh_port=22123).up()


def test_a_state_directory_that_jobs_cannot_enter_is_refused(monkeypatch, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv("LLM_BRIDGE_HOME", str(closed))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(LocalClusterError, match=r"plain users cannot enter .*LLM_BRIDGE_HOME"):
        LocalCluster("lctesttwo", ssh_port=22123).up()


BAD_NAMES = [("login",), ("n2",), ("-a",), ("A1",), ("a-name-too-long",), ("a1", "a2", "a3", "a4", "a5")]


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "a-b"},
        {"name": "Upper"},
        {"nodes": 0},
        {"ssh_port": 70000},
        *({"names": names} for names in BAD_NAMES),
    ],
)
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(LocalClusterError):
        Settings(**bad)


def test_nodes_may_have_names_and_keep_them_in_the_saved_settings():
    settings = Settings(nodes=3, names=("osk-gpu94", "a1-b2c"))
    assert settings.node_names == ["osk-gpu94", "a1-b2c", "n3"]
    assert [settings.address(node) for node in settings.node_names] == [
        "10.77.0.11",
        "10.77.0.12",
        "10.77.0.13",
    ]
    assert Settings(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings
