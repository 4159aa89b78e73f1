"""The batch scripts, as text and as bash reads them; and prefix_output.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm.batch_script import render, templates
from llm_bridge.slurm.spec import Resources, SlurmJob
from testing.paths import PLUGINS

GOLDEN = Path(__file__).parent / "golden"
PREFIX_OUTPUT = PLUGINS / "llm_bridge" / "remote" / "templates" / attempt_dir.PREFIX_OUTPUT
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
    "none": {},
}


def script(template: str, environment: str = "modules and conda") -> str:
    job = SlurmJob(
        cluster="site",
        template=template,
        stage=template,
        directory="/shared/work/d/r/s",
        settings={"preflight": {"min_free_gib": 10}} if template == "sft" else {},
        resources=Resources(nodes=2, gpus_per_node=8, time_limit="2:00:00"),
        signal_before_timeout=template in ("sft", "ray_cluster", "sft_then_ray"),
    )
    site = Cluster(**SITE, environment=ENVIRONMENTS[environment])
    return render(job.resolve(site), "/shared/work/d/r/s/attempt-1")


def test_the_token_file_of_the_cluster_is_the_one_that_the_hubs_client_reads() -> None:
    job = SlurmJob(cluster="site", template="upload", directory="/shared/work/d/r/s")
    site = Cluster(**SITE, hub={"token_file": "/home/it's me/token"})
    text = render(job.resolve(site), "/shared/work/d/r/s/attempt-1")
    assert """export HF_TOKEN_PATH='/home/it'"'"'s me/token'""" in text
    assert "HF_TOKEN_PATH" not in script("upload")


def own_part(text: str) -> str:
    """What a template adds to batch.sh.j2."""
    return text[text.index("mapfile -t hosts") :]


@pytest.mark.parametrize(
    ("name", "text"), [("sft", script("sft")), ("ray_cluster", own_part(script("ray_cluster")))]
)
def test_the_script_is_the_one_that_was_reviewed(name: str, text: str) -> None:
    """After a wanted change: run this with LLM_BRIDGE_REGENERATE=1 and read the diff."""
    golden = GOLDEN / f"{name}.sh"
    if os.environ.get("LLM_BRIDGE_REGENERATE"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("template", templates())
def test_bash_accepts_every_script(template: str, environment: str, tmp_path: Path) -> None:
    path = tmp_path / "script.sh"
    path.write_text(script(template, environment), encoding="utf-8")
    checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_cluster_file_without_an_environment_is_named_where_there_is_no_python() -> None:
    text = script("prepare", "none")
    assert "if ! type python python3" in text
    assert 'environment_error venv "neither this nor conda, container or modules is set' in text
    assert "neither this" not in script("prepare", "venv")


# Stand-ins for the commands of a node. Each program that "python" runs is recorded with the environment it runs in.
STAND_INS = {
    "scontrol": "printf 'n1\\nn2\\n'",
    "srun": """while [[ $1 == -* ]]; do
    case $1 in
        --container-image=*) export IN_CONTAINER=${1#*=} ;;
        --container-workdir=*) cd "${1#*=}" ;;
    esac
    shift
done
exec "$@\"""",
    "apptainer": """[ "$1 $2" = "exec --nv" ] && shift 2
while [[ $1 == --* ]]; do
    if [ "$1" = --pwd ]; then cd "$2"; fi
    shift 2
done
export IN_CONTAINER=$1
shift
exec "$@\"""",
    "module": 'if [ "$1" = load ]; then export IN_MODULE=$2; fi',
}
PYTHON = """if [ "$1" = -u ]; then shift; fi
program=$2
shift 2
echo "$program: ${IN_CONTAINER:-}${IN_MODULE:-}${VIRTUAL_ENV:-}${CONDA_PREFIX:-} in $PWD" >> "$RECORD"
echo "${PYTHONNOUSERSITE-unset}" >> "$RECORD.user_site"
if [ "$program" = ray-head-guard ]; then exec "$@"; fi
if [ "$program" = sft ] || [ "$program" = merge ]; then echo '{}' > "$ATTEMPT_DIR/result.json"; fi"""
PROGRAMS = {
    "prepare": ["prepare"],
    "sft": ["preflight", "sft"],
    "merge": ["merge"],
    "ray_cluster": ["preflight", "ray-head-guard", "ray-node-agent"],
    "sft_then_ray": ["preflight", "sft", "merge", "ray-head-guard", "ray-node-agent"],
    "evaluate": ["evaluate"],
    "upload": ["upload"],
    # The doctor's own job has no setting "preflight", which all jobs have here.
    "doctor": ["preflight", "doctor"],
}


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize("environment", ["none", "venv", "conda", "modules", "apptainer", "pyxis"])
@pytest.mark.parametrize("template", templates())
def test_every_program_of_every_template_runs_in_the_environment(
    template: str, environment: str, tmp_path: Path
) -> None:
    stand_ins, env, init = tmp_path / "bin", tmp_path / "env", tmp_path / "init.sh"
    for name, text in STAND_INS.items():
        executable(stand_ins / name, text)
    for name in ("python", "python3"):
        executable(stand_ins / name, PYTHON)
    init.write_text(
        f"module() {{ . {stand_ins}/module; }}\nconda() {{ export CONDA_PREFIX=$2; }}\nexport -f module conda\n"
    )
    executable(env / "bin" / "activate", f"export VIRTUAL_ENV={env}")
    image = tmp_path / "image.sif"
    image.touch()
    # Settings of the cluster file, and what a program that runs in that environment sees.
    settings, seen = {
        "none": ({}, ""),
        "venv": ({"venv": str(env)}, str(env)),
        "conda": ({"conda": str(env), "conda_init": str(init)}, str(env)),
        "modules": ({"modules": ["cuda/13"], "module_init": str(init)}, "cuda/13"),
        "apptainer": ({"container": str(image), "container_mounts": ["/data:/data"]}, str(image)),
        "pyxis": ({"container": "nvcr.io/x", "container_runtime": "pyxis"}, "nvcr.io/x"),
    }[environment]
    attempt = tmp_path / attempt_dir.attempt_name(1)
    (attempt / "merge").mkdir(parents=True)
    (tmp_path / "merge").mkdir()
    (attempt / attempt_dir.SETTINGS).write_text("{}")
    shutil.copy(PREFIX_OUTPUT, attempt)
    job = SlurmJob(
        cluster="site",
        template=template,
        directory=str(tmp_path),
        settings={"preflight": {"min_free_gib": 10}},
    )
    site = Cluster(**SITE, environment=settings, login_python=str(stand_ins / "python3"))
    (attempt / attempt_dir.SCRIPT).write_text(render(job.resolve(site), str(attempt)))
    slurm = {
        "SLURM_JOB_ID": "5",
        "SLURM_JOB_NAME": "x",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NUM_NODES": "1",
    }
    record = tmp_path / "record"
    done = subprocess.run(
        ["bash", attempt / attempt_dir.SCRIPT],
        env={**slurm, "PATH": f"{stand_ins}:{os.environ['PATH']}", "RECORD": str(record)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # Ray's guard needs srun and scontrol, which no container has.
    outside = {"ray-head-guard"} if environment in ("apptainer", "pyxis") else set()
    expected = [f"{name}: {'' if name in outside else seen} in {attempt}" for name in PROGRAMS[template]]
    assert record.read_text().splitlines() == expected
    # ~/.local does not shadow an environment; without one it may be all that there is.
    assert set(Path(f"{record}.user_site").read_text().split()) == {"unset" if environment == "none" else "1"}


def test_a_site_whose_packages_are_in_the_users_folder_may_say_so() -> None:
    job = SlurmJob(cluster="site", template="sft", directory="/shared/work/d/r/s")
    site = Cluster(**SITE | {"variables": {"PYTHONNOUSERSITE": ""}}, environment={"modules": ["python/3.12"]})
    text = render(job.resolve(site), "/shared/work/d/r/s/attempt-1")
    assert text.index("export PYTHONNOUSERSITE=1") < text.index("export PYTHONNOUSERSITE=''")


def test_a_container_sees_the_workspace_and_the_mounts_of_the_cluster_file() -> None:
    assert " --bind /shared/work --bind /data:/data /images/verl.sif" in script("merge", "apptainer")
    assert "--container-mounts=/shared/work:/shared/work)" in script("merge", "pyxis")


@pytest.mark.parametrize(
    ("environment", "python"),
    [("venv", "python3"), ("apptainer", "/usr/bin/python3"), ("pyxis", "/usr/bin/python3")],
)
def test_rays_guard_runs_where_srun_and_scontrol_are_which_no_container_has(
    environment: str, python: str
) -> None:
    guard = f'\nattend {python} -u "$NODE_ARCHIVE" ray-head-guard'
    assert guard in script("ray_cluster", environment)


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
    attempt = tmp_path / attempt_dir.attempt_name(1)
    attempt.mkdir()
    shutil.copy(PREFIX_OUTPUT, attempt)
    job = SlurmJob(cluster="c", template="sft", directory=str(tmp_path), resources=Resources(nodes=2))
    site = Cluster(name="c", ssh_conn_id="s", workspace="/w", gpus_per_node=1)
    (attempt / attempt_dir.SCRIPT).write_text(render(job.resolve(site), str(attempt)))
    slurm = {
        "SLURM_JOB_ID": "5",
        "SLURM_JOB_NAME": "x",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "96",
        "SLURMD_NODENAME": "n1",
    }
    done = subprocess.run(
        ["bash", attempt / attempt_dir.SCRIPT],
        env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert "srun --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 bash" in done.stdout, done.stderr
    program = f"{attempt / attempt_dir.NODE_ARCHIVE} sft {attempt / attempt_dir.SETTINGS}"
    assert f"[n1] python {program} at n1 with 96 CPUs" in done.stdout
    assert done.returncode == 7
    assert '"exit_code": 7' in (attempt / attempt_dir.OUTCOME).read_text()


@pytest.mark.parametrize(
    "ambient",
    [
        {"POSIXLY_CORRECT": "1"},
        {"SHELLOPTS": "braceexpand:hashall:noclobber:noglob"},
        {
            "BASH_ENV": "set -C; shopt -s expand_aliases failglob; IFS=:\nalias rm='rm -i' mv='mv -i' touch=false"
        },
    ],
    ids=lambda ambient: next(iter(ambient)),
)
def test_options_and_aliases_of_the_users_shell_do_not_change_a_job(
    ambient: dict[str, str], tmp_path: Path
) -> None:
    for name, text in {
        "scontrol": "printf 'n1\\n'",
        "srun": 'while [ "$1" != bash ]; do shift; done; exec "$@"',
        "python": "exit 0",
    }.items():
        executable(tmp_path / name, text)
    if "BASH_ENV" in ambient:
        (tmp_path / "bashrc").write_text(ambient["BASH_ENV"] + "\n")
        ambient = {"BASH_ENV": str(tmp_path / "bashrc")}
    attempt = tmp_path / attempt_dir.attempt_name(1)
    attempt.mkdir()
    shutil.copy(PREFIX_OUTPUT, attempt)
    job = SlurmJob(cluster="c", template="sft", directory=str(tmp_path))
    site = Cluster(name="c", ssh_conn_id="s", workspace="/w", gpus_per_node=1)
    (attempt / attempt_dir.SCRIPT).write_text(render(job.resolve(site), str(attempt)))
    slurm = {
        "SLURM_JOB_ID": "5",
        "SLURM_JOB_NAME": "x",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NUM_NODES": "1",
    }
    for _ in range(2):  # Slurm runs a job again in the same directory
        (attempt / attempt_dir.OUTCOME).write_text('{"exit_code": 143}')
        done = subprocess.run(
            ["bash", attempt / attempt_dir.SCRIPT],
            env={**os.environ, **slurm, **ambient, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert '"exit_code": 0,' in (attempt / attempt_dir.OUTCOME).read_text()
        assert not list(attempt.glob(f"{attempt_dir.HEARTBEAT}*"))


def prefixed(*command: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "SLURMD_NODENAME": "gpu94"}
    return subprocess.run(["bash", PREFIX_OUTPUT, *command], env=environ, capture_output=True, text=True)


@pytest.mark.parametrize("code", [0, 3, 255])
def test_prefix_output_keeps_the_exit_code(code: int) -> None:
    assert prefixed("bash", "-c", f"exit {code}").returncode == code


def test_prefix_output_reports_a_command_that_a_signal_killed() -> None:
    assert prefixed("bash", "-c", "kill -9 $$").returncode == 137


def test_prefix_output_puts_the_nodes_name_before_each_line_of_both_streams() -> None:
    done = prefixed(sys.executable, "-c", "import sys; print('a', flush=True); print('b', file=sys.stderr)")
    assert done.stdout == "[gpu94] a\n[gpu94] b\n"


def test_prefix_output_shows_a_progress_bars_last_state_only() -> None:
    assert prefixed("printf", "10%%\r20%%\rstep:1\ndone\r\n").stdout == "[gpu94] step:1\n[gpu94] done\n"
    states = "".join(
        f"\rEpoch 1:  {n}5%|█  | {n}/9 [00:0{n}<00:09,  1.0{n}it/s, loss=[0.{n}]]" for n in range(9)
    )
    shown = prefixed("printf", "%s\n", states).stdout.splitlines()
    assert len(shown) == 1
    assert "8/9" in shown[0]
    no_total = "\r1it [00:01,  1.5s/it]\r2it [00:02,  1.5s/it]\n"
    assert prefixed("printf", "%s", no_total).stdout == "[gpu94] 2it [00:02,  1.5s/it]\n"


def test_prefix_output_keeps_what_is_printed_between_two_states_of_a_progress_bar() -> None:
    """Python's print writes a text and its line end separately, and a bar of another stream may come between them."""
    bar = "Epoch 1:  8%|█  | 1/12 [00:01<00:11,  1.0it/s]"
    assert prefixed(
        "printf", "%s", f"{bar}step 1 is saved now\r{bar}\nstep:1 - loss\rnext\r{bar}\n"
    ).stdout == (
        f"[gpu94] {bar}step 1 is saved now\n[gpu94] {bar}\n[gpu94] step:1 - loss\n[gpu94] next\n[gpu94] {bar}\n"
    )


@pytest.mark.parametrize("text", ["no space left: /scratch is at 100%", "size mismatch: [1,2]"])
def test_prefix_output_does_not_take_an_error_for_a_progress_bar(text: str) -> None:
    bar = "Epoch 1:  8%|█  | 1/12 [00:01<00:11,  1.0it/s]"
    assert f"[gpu94] {text}" in prefixed("printf", "%s", f"{bar}\r{text}\r{bar}\n").stdout.splitlines()
