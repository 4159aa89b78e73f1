"""Job descriptions and the batch scripts made from them."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from pydantic import ValidationError

from llm_bridge.config.cluster import Cluster
from llm_bridge.config.errors import ConfigError
from llm_bridge.slurm.job import Resources, SlurmJob
from llm_bridge.slurm.script import files, render


def cluster(**changes: Any) -> Cluster:
    return Cluster(**{"name": "c", "ssh_conn_id": "s", "workspace": "/w", "gpus_per_node": 8, **changes})


def job(**changes: Any) -> SlurmJob:
    return SlurmJob(**{"cluster": "c", "directory": "/w/d", "script": "#!/bin/bash\ntrue\n", **changes})


def test_the_jobs_own_resources_win_over_the_stages_and_the_clusters() -> None:
    site = cluster(
        partition="all", mem="1G", time_limit="10", stages={"sft": {"partition": "gpu", "mem": "2G"}}
    )
    asked = dict(job(stage="sft", resources=Resources(mem="3G")).directives(site))
    assert (asked["mem"], asked["partition"], asked["time"]) == ("3G", "gpu", "10")


def test_gpus_are_asked_for_as_the_site_wants_them() -> None:
    two = job(resources=Resources(gpus_per_node=2))
    assert ("gpus-per-node", "2") in two.directives(cluster())
    assert ("gres", "gpu:2") in two.directives(cluster(gpu_request="gres"))


def test_the_clusters_node_list_is_for_jobs_with_gpus_only() -> None:
    site = cluster(nodelist="gpu[94-95]")
    assert "nodelist" not in dict(job().directives(site))
    assert dict(job(resources=Resources(gpus_per_node=8)).directives(site))["nodelist"] == "gpu[94-95]"


@pytest.mark.parametrize("option", ["job-name", "output", "array"])
def test_an_option_that_llm_bridge_sets_itself_is_refused(option: str) -> None:
    with pytest.raises(ValidationError, match=f"{option}: set by llm-bridge"):
        Resources(options={option: "x"})


@pytest.mark.parametrize("value", ["a b", "$(id)", "x\n#SBATCH --uid=0", "é", '"'])
def test_an_option_value_that_would_need_quoting_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        Resources(options={"licenses": value})


def test_a_script_without_an_interpreter_line_is_refused_before_sbatch_does() -> None:
    with pytest.raises(ValidationError, match="must begin with an interpreter line"):
        job(script="echo hi")


def test_the_sbatch_lines_of_a_users_script_come_after_ours_and_so_win() -> None:
    own = job(script="#!/bin/bash\n# hello\n#SBATCH --nodes=3\n\necho\n#SBATCH --nodes=4\n")
    text = render(own, cluster(), "/w/d/attempt-1")
    assert text.index("--nodes=1") < text.index("#SBATCH --nodes=3")
    assert "--nodes=4" not in text


def test_an_unknown_template_lists_those_that_exist() -> None:
    with pytest.raises(
        ConfigError, match=r"no job template include/jobs/nope\.sh\.j2: choose from batch, .*sft"
    ):
        render(job(script=None, template="nope"), cluster(), "/w")


NASTY = 'it\'s $(touch /tmp/pwned) `id` "x" \\ ; & | グ'


def test_whatever_is_in_the_settings_never_reaches_the_script() -> None:
    shipped = files(job(settings={"run": NASTY}), cluster(), "/w/d/attempt-1")
    assert "pwned" not in shipped["script.sh"]
    assert "pwned" in shipped["settings.json"]


def test_values_of_the_cluster_file_are_quoted_in_the_script(tmp_path: Any) -> None:
    text = render(job(), cluster(variables={"NASTY": NASTY}), str(tmp_path))
    line = next(line for line in text.splitlines() if line.startswith("export NASTY="))
    done = subprocess.run(
        ["bash", "-c", f'{line}; printf %s "$NASTY"'], capture_output=True, text=True, check=True
    )
    assert done.stdout == NASTY


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"modules": ["hpcx/2.18.1", "cuda"], "venv": "/v"},
        {"conda": "/c", "conda_init": "/i.sh"},
        {"container": "/x.sif", "container_mounts": ["/a:/b"]},
        {"container": "x", "container_runtime": "pyxis"},
    ],
)
def test_the_script_is_valid_bash_in_every_environment(environment: dict[str, Any]) -> None:
    text = render(job(), cluster(environment=environment, network_interface="eth0"), "/w/it's/attempt-1")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_a_script_that_runs_leaves_its_exit_code_in_the_outcome_file(tmp_path: Any) -> None:
    """Runs the rendered script as a plain process: Slurm's variables are given by the test."""
    shipped = files(job(script="#!/bin/bash\necho working\nexit 3\n"), cluster(), str(tmp_path))
    for name, text in shipped.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    environment = {
        "PATH": "/usr/bin:/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NAME": "x",
    }
    done = subprocess.run(
        ["bash", str(tmp_path / "script.sh")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert "working" in done.stdout
    assert '"exit_code": 3' in (tmp_path / "outcome.json").read_text()
