"""A real Airflow starts, runs a task, listens on loopback only, and leaves nothing behind."""

from __future__ import annotations

import re
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from testing import processes
from testing.airflow import AirflowError, LocalAirflow, free_port
from testing.airflow_api import AirflowApi, ApiError

DAG = """
import subprocess, time
from airflow.sdk import DAG, task

with DAG("trivial", schedule=None):
    @task
    def answer(params=None):
        return {"value": 42}

    answer()

with DAG("slow", schedule=None):
    @task
    def sleep():
        subprocess.run(["sleep", "300"], start_new_session=True)

    sleep()
"""


def listening(pids: list[int]) -> dict[str, int]:
    """Address -> pid, of all TCP sockets that these processes listen on."""
    table = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in table.splitlines():
        for pid in re.findall(r"pid=(\d+)", line):
            if int(pid) in pids:
                found[line.split()[3]] = int(pid)
    return found


def test_life_of_a_local_airflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "True")  # of the user's shell: must not get through
    dags, plugins = tmp_path / "dags", tmp_path / "plugins"
    dags.mkdir()
    plugins.mkdir()
    (dags / "both.py").write_text(DAG)
    airflow = LocalAirflow(tmp_path / "home", dags, plugins, port=free_port(18180), parallelism=2)
    try:
        assert airflow.start() is True
        pids = airflow.processes()
        assert listening(pids).keys() == {f"127.0.0.1:{airflow.port}"}
        for name in ("passwords.json", "secrets.json"):
            assert stat.S_IMODE((airflow.home / name).stat().st_mode) == 0o600

        same = LocalAirflow(tmp_path / "home", dags, plugins, port=1, parallelism=2)
        assert same.port == airflow.port, "the port of the running one is found"
        assert same.start() is False
        assert set(same.processes()) >= set(pids) - {0}

        api = airflow.api()
        api.wait_for_dag("trivial")
        api.unpause("trivial")
        assert api.trigger("trivial", {}, "one") == "one"
        assert api.wait("trivial", "one", timeout=120) == "success"
        assert api.xcom("trivial", "one", "answer") == {"value": 42}
        assert api.xcom("trivial", "one", "answer", "nothing") is None
        assert [file.name for file in airflow.task_logs("trivial", "one", "answer")] == ["attempt=1.log"]
        assert not api.ask("GET", "/api/v2/dags", params={"dag_id_pattern": "example"})["dags"]
        with pytest.raises(ApiError, match="refuses the login"):
            AirflowApi(airflow.url, "admin", "wrong").tasks("trivial", "one")

        # A task's child in a session of its own is what process groups miss.
        api.unpause("slow")
        api.trigger("slow", {}, "two")
        deadline = time.monotonic() + 60
        while "sleep" not in [name_of(pid) for pid in airflow.processes()]:
            assert time.monotonic() < deadline, "the slow task has not started"
            time.sleep(0.5)
    finally:
        airflow.stop(patience=5)
    assert processes.with_variable("LLM_BRIDGE_AIRFLOW", str(airflow.home)) == []
    assert airflow.health() == {}
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", airflow.port)) != 0
    airflow.stop()  # fine when it is down


def name_of(pid: int) -> str:
    """Name of a process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def test_a_failed_start_says_what_the_component_said_and_leaves_nothing(tmp_path: Path):
    home = tmp_path / "home"
    airflow = LocalAirflow(home, tmp_path, tmp_path, database_url="nonsense://x", port=free_port(18180))
    with pytest.raises(AirflowError, match=r"(?s)db migrate.*migrate\.log.*nonsense"):
        airflow.start()
    assert airflow.processes() == []


def test_a_taken_port_is_not_used():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port


def test_processes_are_found_by_their_variable_and_ended(tmp_path: Path):
    mark = str(tmp_path)
    env = {"LLM_BRIDGE_AIRFLOW": mark, "PATH": "/usr/bin:/bin"}
    # One that ignores SIGTERM, with a child in another session; their parent ends at once.
    script = "trap '' TERM; setsid sleep 60 & sleep 60"
    started = subprocess.Popen(["bash", "-c", f"({script}) &"], env=env)
    started.wait()

    def find() -> list[int]:
        return processes.with_variable("LLM_BRIDGE_AIRFLOW", mark)

    deadline = time.monotonic() + 10
    while len(find()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert processes.memory(find()) > 100_000
    processes.end(find, patience=0.3)
    assert find() == []
