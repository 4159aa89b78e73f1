"""The batch scripts, as text and as bash reads them; and on_node.sh."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.slurm.job import Resources, SlurmJob
from llm_bridge.slurm.script import render
from tests.jobs.support import JOBS

GOLDEN = Path(__file__).parent / "golden"
SITE: dict[str, Any] = {
    "name": "site",
    "ssh_conn_id": "s",
    "workspace": "/shared/work",
    "partition": "gpu",
    "gpus_per_node": 8,
    "cpus_per_task": 96,
    "network_interface": "enp25s0np0",
    "variables": {"NVTE_FUSED_ATTN": "0"},
}
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "modules and conda": {"modules": ["hpcx/2.18.1"], "conda": "/envs/verl", "conda_init": "/opt/conda.sh"},
    "venv": {"venv": "/shared/it's env"},
    "apptainer": {"container": "/images/verl.sif", "container_mounts": ["/data:/data"]},
    "pyxis": {"container": "nvcr.io/x", "container_runtime": "pyxis"},
}


def script(template: str, environment: str = "modules and conda") -> str:
    job = SlurmJob(
        cluster="site",
        template=template,
        stage=template,
        directory="/shared/work/d/r/s",
        settings={"preflight": {"min_free_gib": 10}} if template == "sft" else {},
        resources=Resources(nodes=2, gpus_per_node=8, time_limit="2:00:00"),
        warned=template in ("sft", "ray_cluster", "sft_then_ray"),
    )
    return render(job, Cluster(**SITE, environment=ENVIRONMENTS[environment]), "/shared/work/d/r/s/attempt-1")


def test_the_sft_script_is_the_one_that_was_reviewed() -> None:
    """After a wanted change: ``LLM_BRIDGE_REGENERATE=1 pytest tests/jobs/test_templates.py``, then read the diff."""
    golden = GOLDEN / "sft.sh"
    if os.environ.get("LLM_BRIDGE_REGENERATE"):
        golden.write_text(script("sft"), encoding="utf-8")
    assert script("sft") == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("template", ["sft", "merge", "prepare", "ray_cluster", "sft_then_ray"])
def test_bash_accepts_every_script(template: str, environment: str, tmp_path: Path) -> None:
    path = tmp_path / "script.sh"
    path.write_text(script(template, environment), encoding="utf-8")
    checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_steps_run_where_torch_and_verl_are() -> None:
    assert "apptainer exec --nv --bind /shared/work --bind /data:/data /images/verl.sif" in script(
        "sft", "apptainer"
    )
    assert "--container-image=nvcr.io/x" in script("merge", "pyxis")


def test_a_script_starts_one_task_a_node_that_sees_the_first_nodes_name(tmp_path: Path) -> None:
    """Run the sft script with stand-ins for scontrol, srun and python that print what they get."""
    stand_ins = {
        "scontrol": "printf 'n1\\nn2\\n'",
        "srun": 'echo "srun $*"; while [ "$1" != bash ]; do shift; done; exec "$@"',
        "python": 'echo "python $* at $RENDEZVOUS_HOST with ${SRUN_CPUS_PER_TASK} CPUs"; exit 7',
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    attempt = tmp_path / "attempt-1"
    (attempt / "jobs").mkdir(parents=True)
    (attempt / "jobs" / "on_node.sh").write_text((JOBS / "on_node.sh").read_text())
    job = SlurmJob(cluster="c", template="sft", directory=str(tmp_path), resources=Resources(nodes=2))
    site = Cluster(name="c", ssh_conn_id="s", workspace="/w", gpus_per_node=1)
    (attempt / "script.sh").write_text(render(job, site, str(attempt)))
    slurm = {
        "SLURM_JOB_ID": "5",
        "SLURM_JOB_NAME": "x",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "96",
        "SLURMD_NODENAME": "n1",
    }
    done = subprocess.run(
        ["bash", attempt / "script.sh"],
        env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert "srun --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 bash" in done.stdout, done.stderr
    settings = f"{attempt}/jobs/sft.py {attempt}/settings.json"
    assert f"[n1] python {settings} at n1 with 96 CPUs" in done.stdout
    assert done.returncode == 7
    assert '"exit_code": 7' in (attempt / "outcome.json").read_text()


def on_node(*command: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "SLURMD_NODENAME": "gpu94"}
    return subprocess.run(
        ["bash", JOBS / "on_node.sh", *command], env=environ, capture_output=True, text=True
    )


@pytest.mark.parametrize("code", [0, 3, 255])
def test_on_node_keeps_the_exit_code(code: int) -> None:
    assert on_node("bash", "-c", f"exit {code}").returncode == code


def test_on_node_tells_a_command_that_a_signal_killed() -> None:
    assert on_node("bash", "-c", "kill -9 $$").returncode == 137


def test_on_node_puts_the_nodes_name_before_each_line_of_both_streams() -> None:
    done = on_node(sys.executable, "-c", "import sys; print('a', flush=True); print('b', file=sys.stderr)")
    assert done.stdout == "[gpu94] a\n[gpu94] b\n"


def test_on_node_shows_a_progress_bars_last_state_only() -> None:
    assert on_node("printf", "10%%\r20%%\rstep:1\ndone\r\n").stdout == "[gpu94] step:1\n[gpu94] done\n"
