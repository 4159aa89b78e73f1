"""Batch scripts, and the files that travel with them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import ConfigError
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm.batch_script import files, render
from llm_bridge.slurm.spec import Resources, SlurmJob


def cluster(**changes: Any) -> Cluster:
    return Cluster(**{"name": "c", "ssh_conn_id": "s", "workspace": "/w", "gpus_per_node": 8, **changes})


def job(**changes: Any) -> SlurmJob:
    return SlurmJob(**{"cluster": "c", "directory": "/w/d", "script": "#!/bin/bash\ntrue\n", **changes})


def test_the_sbatch_lines_of_a_users_script_override_those_of_llm_bridge() -> None:
    own = job(script="#!/bin/bash\n# hello\n#SBATCH --nodes=3\n\necho\n#SBATCH --nodes=4\n")
    text = render(own.resolve(cluster()), "/w/d/attempt-1")
    assert text.index("--nodes=1") < text.index("#SBATCH --nodes=3")
    assert "--nodes=4" not in text


def test_an_unknown_template_lists_those_that_exist() -> None:
    with pytest.raises(
        ConfigError, match=r"no job template 'nope': choose from doctor, evaluate, merge, .*sft"
    ):
        render(job(script=None, template="nope").resolve(cluster()), "/w")


NASTY = 'it\'s $(touch /tmp/pwned) `id` "x" \\ ; & | グ'


def test_settings_are_never_written_into_the_script() -> None:
    shipped = files(job(settings={"run": NASTY}).resolve(cluster()), "/w/d/attempt-1").texts
    assert "pwned" not in shipped[attempt_dir.SCRIPT]
    assert "pwned" in shipped[attempt_dir.SETTINGS]


def test_values_of_the_cluster_file_are_quoted_in_the_script(tmp_path: Any) -> None:
    text = render(job().resolve(cluster(variables={"NASTY": NASTY})), str(tmp_path))
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
    site = cluster(environment=environment, network_interface="eth0")
    text = render(job().resolve(site), "/w/it's/attempt-1")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


SLURM = {
    "PATH": "/usr/bin:/bin",
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "n1",
    "SLURM_JOB_NAME": "x",
    "SLURMD_NODENAME": "n1",
    "SLURM_MEM_PER_NODE": "4096",
}


def write_files(folder: Path, script: str, **changes: Any) -> None:
    """Write the files of an attempt with a user's script."""
    shipped = files(job(script=script).resolve(cluster(**changes)), str(folder)).texts
    for name, text in shipped.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)


def run(
    folder: Path, script: str = "#!/bin/bash\ntrue\n", environ: dict[str, str] | None = None, **changes: Any
) -> subprocess.CompletedProcess[str]:
    """Run the batch script of a user's script as a plain process."""
    write_files(folder, script, **changes)
    return subprocess.run(
        ["bash", str(folder / attempt_dir.SCRIPT)],
        env=SLURM | (environ or {}),
        capture_output=True,
        text=True,
    )


def reason(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / attempt_dir.REASON).read_text())
    assert read["kind"] == "environment" and read["retry"] is False
    return read


WORKING = "#!/bin/bash\necho working\nexit 3\n"


def without_links(folder: Path) -> dict[str, str]:
    """Variables of a process that can make no hard links."""
    link = folder / "bin" / "ln"
    link.parent.mkdir(exist_ok=True)
    link.write_text("#!/bin/sh\necho 'ln: Operation not permitted' >&2; exit 1\n")
    link.chmod(0o755)
    return {"PATH": f"{link.parent}:/usr/bin:/bin"}


@pytest.mark.parametrize("links", [True, False])
def test_a_script_that_runs_leaves_its_exit_code_in_the_outcome_file(tmp_path: Path, links: bool) -> None:
    done = run(tmp_path, WORKING, {} if links else without_links(tmp_path))
    assert done.returncode == 3, done.stderr
    assert done.stdout.endswith("working\n") and done.stderr == "", "the program's last line is the last one"
    assert '"exit_code": 3' in (tmp_path / attempt_dir.OUTCOME).read_text()
    assert attempt_dir.job_of(str(tmp_path)) == "7"


def test_variables_that_steer_srun_do_not_reach_it_and_it_passes_all_others_on(tmp_path: Path) -> None:
    foreign = {"SRUN_EXPORT_ENV": "NONE", "SBATCH_EXPORT": "NONE", "SLURM_EXPORT_ENV": "NONE"}
    done = run(tmp_path, "#!/bin/bash\nenv\n", foreign, slurm_bin="/opt/slurm/bin")
    lines = done.stdout.splitlines()
    assert "SLURM_EXPORT_ENV=ALL" in lines and "PATH=/opt/slurm/bin:/usr/bin:/bin" in lines
    assert not [line for line in lines if line.startswith(("SRUN_", "SBATCH_"))]


# What init scripts of sites do that ends a script under `set -eu`, or that changes it.
SITE_SCRIPT = """
[ -n "$NOT_SET" ] && echo ok
false
cd /
set -eu; trap 'echo lost' EXIT; set -f
export SRUN_DEBUG=3 SLURM_MEM_PER_CPU=100 SLURM_MEM_PER_NODE=1 SLURM_CONF=/opt/slurm/etc/slurm.conf
module() {
    case "$1" in
    load)
        case "$2" in bad*) return 1 ;; odd) return 0 ;; esac
        LOADEDMODULES="${LOADEDMODULES:+$LOADEDMODULES:}$2/1.0"
        false
        ;;
    *) false ;;
    esac
}
set +eu
[ -n "$NOT_SET" ] && echo ok
"""


def modules(folder: Path, *names: str, init: str = SITE_SCRIPT) -> dict[str, Any]:
    (folder / "site.sh").write_text(init)
    return {"environment": {"modules": list(names), "module_init": str(folder / "site.sh")}}


RESETS = """
module() {
    case "$1" in
    reset) MODULEPATH=/system ;;
    use) MODULEPATH=$MODULEPATH:$3 ;;
    load) LOADEDMODULES=$2 ;;
    esac
}
export MODULEPATH="/site one::/system:/site2" LOADEDMODULES
"""


def test_module_reset_keeps_the_sites_folders(tmp_path: Path) -> None:
    done = run(tmp_path, "#!/bin/bash\necho path=$MODULEPATH\n", **modules(tmp_path, "gcc", init=RESETS))
    assert "path=/system:/site one:/site2" in done.stdout.splitlines(), done.stderr


def test_a_sites_script_may_fail_change_directory_and_set_slurms_variables(tmp_path: Path) -> None:
    done = run(tmp_path, "#!/bin/bash\npwd; env\n", **modules(tmp_path, "gcc", "cuda"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert str(tmp_path) in lines and "lost" not in lines
    assert "SLURM_MEM_PER_NODE=4096" in lines and "SLURM_CONF=/opt/slurm/etc/slurm.conf" in lines
    assert not [line for line in lines if line.startswith(("SLURM_MEM_PER_CPU", "SRUN_"))]
    assert '"exit_code": 0' in (tmp_path / attempt_dir.OUTCOME).read_text()


def test_the_home_of_another_python_in_the_login_environment_does_not_reach_the_environments(
    tmp_path: Path,
) -> None:
    home = {"PYTHONHOME": "/opt/old-python"}
    done = run(tmp_path, "#!/bin/bash\nenv\n", home, **modules(tmp_path, "cuda"))
    assert done.returncode == 0 and "PYTHONHOME" not in done.stdout
    assert "PYTHONHOME=/opt/old-python" in run(tmp_path / "none", "#!/bin/bash\nenv\n", home).stdout


def test_a_module_that_is_missing_is_named_with_its_key_and_node(tmp_path: Path) -> None:
    done = run(tmp_path, **modules(tmp_path, "gcc", "bad/1.2"))
    assert done.returncode == 1
    sentence = "include/clusters/c.yaml, environment.modules: 'module load bad/1.2' failed"
    assert sentence in done.stderr and reason(tmp_path)["reason"].startswith(sentence)
    assert reason(tmp_path)["reason"].endswith("(on node n1)")


def test_a_module_that_reports_success_and_is_not_listed_is_a_warning(tmp_path: Path) -> None:
    done = run(tmp_path, **modules(tmp_path, "odd"))
    assert done.returncode == 0 and "warning: 'module load odd' succeeded" in done.stderr


@pytest.mark.parametrize("code", [0, 3])
def test_a_sites_script_that_calls_exit_fails_the_job_and_is_named(tmp_path: Path, code: int) -> None:
    done = run(tmp_path, **modules(tmp_path, "gcc", init=f"exit {code}\n"))
    assert done.returncode == (code or 1)
    assert f"{tmp_path}/site.sh ended the job" in reason(tmp_path)["reason"]
    assert f'"exit_code": {code or 1}' in (tmp_path / attempt_dir.OUTCOME).read_text()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (
            {"modules": ["a"], "module_init": "/no/init.sh"},
            "environment.module_init: /no/init.sh cannot be read",
        ),
        (
            {"modules": ["a"], "module_init": "/dev/null"},
            "module_init: /dev/null defines no command 'module'",
        ),
        ({"venv": "/no/venv"}, "environment.venv: /no/venv/bin/activate cannot be read"),
        (
            {"conda": "/c", "conda_init": "/no/conda.sh"},
            "environment.conda_init: /no/conda.sh cannot be read",
        ),
        ({"conda": "/c", "conda_init": "/dev/null"}, "conda_init: /dev/null defines no command 'conda'"),
        ({"container": '/no/"x".sif'}, 'environment.container: /no/"x".sif cannot be read'),
    ],
)
def test_what_is_missing_of_the_environment_is_named_with_its_key(
    tmp_path: Path, environment: dict[str, Any], words: str
) -> None:
    done = run(tmp_path, environment=environment)
    assert done.returncode == 1
    assert words in done.stderr and words in reason(tmp_path)["reason"]


def test_a_venv_that_was_moved_is_named_with_the_place_that_it_activates(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text("VIRTUAL_ENV=/old/place\n")
    run(tmp_path, environment={"venv": str(tmp_path / "venv")})
    assert "activates /old/place: a venv cannot be moved" in reason(tmp_path)["reason"]


def test_a_conda_environment_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "conda.sh").write_text("conda() { return 1; }\nfalse\n")
    run(tmp_path, environment={"conda": str(tmp_path / "env"), "conda_init": str(tmp_path / "conda.sh")})
    assert "environment.conda: 'conda activate" in reason(tmp_path)["reason"]


def test_an_unexpected_end_of_the_batch_script_names_file_line_and_command(tmp_path: Path) -> None:
    shipped = files(job().resolve(cluster()), str(tmp_path)).texts
    (tmp_path / attempt_dir.SCRIPT).write_text(shipped[attempt_dir.SCRIPT])
    done = subprocess.run(
        ["bash", str(tmp_path / attempt_dir.SCRIPT)], env=SLURM, capture_output=True, text=True
    )
    lines = shipped[attempt_dir.SCRIPT].splitlines()
    number = 1 + next(n for n, line in enumerate(lines) if line.startswith("chmod"))
    assert f"line {number} of {tmp_path}/{attempt_dir.SCRIPT} ended with exit code 1: chmod" in done.stderr


def test_a_site_without_gres_shows_all_gpus_of_a_node_to_the_job() -> None:
    site = cluster(gpu_request="none")
    assert "export CUDA_VISIBLE_DEVICES=0,1,2,3\n" in render(
        job(resources=Resources(gpus_per_node=4)).resolve(site), "/w"
    )
    assert "CUDA_VISIBLE_DEVICES" not in render(job().resolve(site), "/w")


def test_without_hard_links_a_script_runs_only_if_its_job_was_first(tmp_path: Path) -> None:
    folder = tmp_path / f"{attempt_dir.JOB_ID}{attempt_dir.CLAIM_FOLDER_SUFFIX}"
    attempt_dir.write(str(folder / attempt_dir.JOB_ID), "5\n")
    done = run(tmp_path, WORKING, without_links(tmp_path))
    assert (done.returncode, "working" in done.stdout) == (0, False)
    assert "this attempt's job is 5" in done.stdout and attempt_dir.job_of(str(tmp_path)) == "5"


def test_without_hard_links_a_job_that_was_claimed_before_runs(tmp_path: Path) -> None:
    attempt_dir.write(str(tmp_path / attempt_dir.JOB_ID), "7\n")
    assert "working" in run(tmp_path, WORKING, without_links(tmp_path)).stdout


def test_a_first_claim_without_an_id_is_decided_by_the_second_one(tmp_path: Path) -> None:
    (tmp_path / attempt_dir.JOB_ID).write_text("")
    assert "working" in run(tmp_path, WORKING, without_links(tmp_path)).stdout
    assert attempt_dir.job_of(str(tmp_path)) == "7"


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes(folder: Path) -> list[str]:
    """Return the command lines that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found.append(file.read_text(errors="replace"))
    return [line for line in found if str(folder) in line]


def test_a_script_touches_its_heartbeat_until_it_ends(tmp_path: Path) -> None:
    run(tmp_path, "#!/bin/bash\nsleep 1; ls $ATTEMPT_DIR > seen\n")
    assert attempt_dir.HEARTBEAT in (tmp_path / "seen").read_text()
    assert not [*tmp_path.glob(attempt_dir.HEARTBEAT + "*")]
    assert not processes(tmp_path), (
        "one outlives the job where Slurm tracks them by their parents (linuxproc)"
    )


@pytest.mark.parametrize("closed", [True, False])
def test_a_run_that_is_replaced_ends_itself_although_no_signal_reaches_it(
    tmp_path: Path, closed: bool
) -> None:
    """Its node does not answer slurmctld, which has ended the job; the workspace is still there."""
    write_files(tmp_path, "#!/bin/bash\ntouch began\nsleep 1000\n")
    script = tmp_path / attempt_dir.SCRIPT
    # Slurm has five minutes; this test does not.
    script.write_text(script.read_text().replace("read -r -t 5", "read -r -t 0.1"))
    process = subprocess.Popen(["bash", str(script)], env=SLURM, start_new_session=True)
    wait_for((tmp_path / "began").exists)
    if closed:
        (tmp_path / attempt_dir.CLOSED).touch()
    else:
        (tmp_path / attempt_dir.CURRENT_RUN).write_text("another")
    assert process.wait(30) == 143
    assert '"exit_code": 143' in (tmp_path / attempt_dir.OUTCOME).read_text()
    assert not attempt_dir.heartbeats(str(tmp_path))


def test_a_run_that_cannot_store_its_id_is_not_ended_by_the_id_of_an_earlier_one(tmp_path: Path) -> None:
    current = tmp_path / attempt_dir.CURRENT_RUN
    current.write_text("earlier\n")
    mv = tmp_path / "bin" / "mv"
    mv.parent.mkdir()
    mv.write_text(f'#!/bin/sh\ncase $2 in {current.name}) exit 1 ;; esac\nexec /bin/mv "$@"\n')
    mv.chmod(0o755)
    done = run(tmp_path, environ={"PATH": f"{mv.parent}:/usr/bin:/bin"})
    assert done.returncode == 0 and not current.exists(), done.stderr


def test_a_job_that_slurm_runs_again_waits_until_its_earlier_run_has_ended(tmp_path: Path) -> None:
    write_files(tmp_path, "#!/bin/bash\ntouch began\n")
    script = tmp_path / attempt_dir.SCRIPT
    script.write_text(script.read_text().replace("sleep 15", "sleep 1"))
    earlier = tmp_path / f"{attempt_dir.HEARTBEAT}earlier"
    earlier.touch()
    process = subprocess.Popen(["bash", str(script)], env=SLURM, stdout=subprocess.PIPE, text=True)
    for _ in range(12):
        earlier.touch()
        time.sleep(0.25)
    assert not (tmp_path / "began").exists()
    output, _ = process.communicate(timeout=30)
    assert "waiting for the end of an earlier run" in output
    assert process.returncode == 0 and (tmp_path / "began").exists() and not earlier.exists()
