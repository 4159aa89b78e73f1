"""The file that `new-cluster` writes: what a site answers, what is guessed, and that it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_bridge.__main__ import main
from llm_bridge.commands import new_cluster
from llm_bridge.commands.new_cluster import Site
from llm_bridge.config.loader import load_cluster
from llm_bridge.exceptions import LoginNodeUnreachable
from llm_bridge.remote.messages import DescribeAnswer, Folder
from llm_bridge.slurm import inventory

SINFO = """\
gpu|g1|idle|96|1031000|gpu:h100:8(S:0-1)|h100,nvlink|none
gpu|g2|drain|96|1031000|gpu:h100:8(S:0-1)|h100,nvlink|bad fan
cpu*|c1|idle|64|257000|(null)|(null)|none
"""
FOLDERS = (Folder("/home/ada", 90.0, "ext4"), Folder("/lustre/ada", 12000.0, "lustre"))


def site(**changes: Any) -> Site:
    described = DescribeAnswer("ada", "/bin/bash", folders=FOLDERS, interfaces=["ib0", "eth0"])
    values: dict[str, Any] = {
        "login_python": "/usr/bin/python3",
        "slurm_bin": None,
        "described": described,
        "partitions": inventory.partitions(SINFO),
        "limits": {"gpu": {"MaxTime": "2-00:00:00"}},
        "associations": [{"account": "team7", "QOS": "normal,long"}],
    }
    return Site(**values | changes)


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this process's logs: the command turns its own off for good."""
    monkeypatch.setattr(new_cluster, "quiet", lambda: None)


@pytest.fixture
def write(include: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command with the answers of a site, and return the loaded file."""

    def run(answers: Site, *arguments: str) -> Any:
        async def ask(name: str, ssh_conn_id: str | None) -> Site:
            return answers

        monkeypatch.setattr(new_cluster, "ask", ask)
        assert main(["new-cluster", "mine", *(arguments or ("--ssh-conn-id", "slurm_mine"))]) == 0
        return load_cluster("mine"), (include / "clusters" / "mine.yaml").read_text()

    return run


def test_the_file_has_what_the_site_answers(write: Any) -> None:
    cluster, text = write(site())
    assert (cluster.ssh_conn_id, cluster.partition, cluster.account) == ("slurm_mine", "gpu", "team7")
    assert (cluster.gpus_per_node, cluster.device, cluster.time_limit) == (8, "cuda", "2-00:00:00")
    assert cluster.workspace == "/lustre/ada/llm-bridge", "a shared file system comes first"
    assert cluster.stages["prepare"].partition == "cpu" and cluster.stages["prepare"].cpus_per_task == 4
    assert "# gpu_type: h100" in text and "# constraint: h100" in text
    assert "/lustre/ada: 12,000 GiB free, lustre" in text


def test_guesses_are_marked_as_such(write: Any) -> None:
    _, text = write(site())
    guesses = [line for line in text.splitlines() if "guess" in line]
    for key in (
        "workspace:",
        "partition:",
        "cpus_per_task:",
        "stages:",
        "interfaces of the login node: ib0, eth0",
    ):
        assert any(key in line for line in guesses), key


def test_a_site_whose_slurm_knows_no_gpus_gets_whole_nodes_and_says_what_to_set(write: Any) -> None:
    cluster, text = write(site(partitions=inventory.partitions("main*|n1|idle|8|64000|(null)|(null)|none\n")))
    assert (cluster.gpu_request, cluster.device, cluster.gpus_per_node) == ("none", "cpu", 1)
    assert "device: cuda, and gpu_request: none" in text


def test_airflow_on_the_login_node_needs_no_connection(write: Any) -> None:
    assert write(site(), "--local")[0].ssh_conn_id is None


def test_answers_of_a_site_are_data_for_yaml(write: Any) -> None:
    odd = "a: b # c"
    described = DescribeAnswer(
        "ada", "/bin/sh", cleared=["SBATCH_ACCOUNT"], folders=[Folder("/w/x: y", 1.0, "nfs")]
    )
    answers = site(associations=[{"account": "1e3", "QOS": odd}], described=described)
    cluster, text = write(answers)
    assert cluster.account == "1e3" and cluster.workspace == "/w/x: y/llm-bridge"
    assert "SBATCH_ACCOUNT" in text and f"# qos: '{odd}'" in text


def test_a_file_that_exists_is_kept_unless_forced(
    write: Any, include: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(site())
    assert main(["new-cluster", "mine", "--local"]) == 1
    assert "exists: choose another NAME, or replace it with --force" in capsys.readouterr().err
    assert load_cluster("mine").ssh_conn_id == "slurm_mine"
    assert write(site(), "--local", "--force")[0].ssh_conn_id is None


def test_what_to_do_next_names_the_environment_before_doctor(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(site())
    said = capsys.readouterr().out
    assert 0 < said.index("install-environment mine") < said.index("doctor mine")


def test_a_name_that_is_no_file_name_is_refused(include: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-cluster", "../x", "--local"]) == 1
    assert "'../x' may have letters, digits" in capsys.readouterr().err


def test_a_login_node_that_does_not_answer_is_one_line_and_no_file(
    include: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ask(name: str, ssh_conn_id: str | None) -> Site:
        raise LoginNodeUnreachable("Connection refused")

    monkeypatch.setattr(new_cluster, "ask", ask)
    assert main(["new-cluster", "mine", "--local"]) == 1
    assert capsys.readouterr().err == "error: Connection refused\n"
    assert not (include / "clusters" / "mine.yaml").exists()


def test_answers_that_make_no_valid_file_leave_what_was_there(
    write: Any, include: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text = write(site())

    async def ask(name: str, ssh_conn_id: str | None) -> Site:
        return site(partitions=inventory.partitions("gpu#1*|g1|idle|8|64000|gpu:8|(null)|none\n"))

    monkeypatch.setattr(new_cluster, "ask", ask)
    assert main(["new-cluster", "mine", "--local", "--force"]) == 1
    assert main(["new-cluster", "other", "--local"]) == 1
    assert "make no valid file, and nothing was changed" in capsys.readouterr().err
    assert (include / "clusters" / "mine.yaml").read_text() == text
    assert not (include / "clusters" / "other.yaml").exists()


@pytest.mark.parametrize("limit", ["UNLIMITED", "INFINITE", "NONE"])
def test_jobs_in_a_partition_without_a_time_limit_get_a_day(write: Any, limit: str) -> None:
    assert write(site(limits={"gpu": {"MaxTime": limit}}))[0].time_limit == "1-00:00:00"
