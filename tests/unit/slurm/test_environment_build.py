"""The environment to build, and the script that builds it, with stand-ins for uv and apptainer (not in CI)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.exceptions import ConfigError
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm import batch_script
from llm_bridge.slurm.environment_build import PINS, EnvironmentBuild, pins

# Makes the directory that `uv venv` makes, and records the other calls.
UV = """if [ "$1" = --version ]; then echo "uv 9.9"; exit; fi
echo "$UV_PYTHON_INSTALL_DIR: $*" >> "$CALLS"
if [ "$1" = venv ]; then mkdir -p "$4/bin" && ln -s "$REAL_PYTHON" "$4/bin/python"; fi
if [ -n "${UV_FAILS:-}" ] && [ "$1" = pip ]; then echo "$UV_FAILS"; exit 2; fi"""
APPTAINER = """if [ "$1" = --version ]; then echo "apptainer version 1.4"; exit; fi
echo "$*" >> "$CALLS"
cat "$4" requirements.txt record.json > "$3\""""


def cluster(environment: dict[str, Any], workspace: str = "/w", **more: Any) -> Cluster:
    return Cluster(
        name="site", ssh_conn_id=None, workspace=workspace, gpus_per_node=8, environment=environment, **more
    )


def build(folder: Path, requirements: str = "a==1\n", **more: Any) -> EnvironmentBuild:
    site = cluster({"venv": f"{folder}/it's envs/llm"}, str(folder / "w"))
    return EnvironmentBuild(site, requirements, **more)


def run(folder: Path, wanted: EnvironmentBuild, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script as its job does, with the stand-ins."""
    attempt, programs = folder / "attempt", folder / "bin"
    attempt.mkdir(exist_ok=True)
    requirements = Path(wanted.requirements_file)
    requirements.parent.mkdir(parents=True, exist_ok=True)
    requirements.write_text("\n".join(wanted.lines) + "\n")
    script = attempt / attempt_dir.USER_SCRIPT
    script.write_text(wanted.script())
    environment = {
        **{"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), "CALLS": str(folder / "calls")},
        **{"REAL_PYTHON": sys.executable, "SLURMD_NODENAME": "n7", "SLURM_JOB_ID": "4711"},
        **variables,
    }
    return subprocess.run(
        ["bash", script], cwd=attempt, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    for name, text in {"uv": UV, "apptainer": APPTAINER}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    return tmp_path / "bin"


def test_the_hash_is_that_of_the_pins_not_of_their_comments(tmp_path: Path) -> None:
    first = build(tmp_path, "# why\na==1  # because\n\nb[x]==2\n")
    assert first.lines == ["a==1", "b[x]==2"]
    assert build(tmp_path, "a==1\nb[x]==2").hash == first.hash and len(first.hash) == 12
    others = [
        build(tmp_path, "a==1\nb[x]==3"),
        build(tmp_path, first.requirements, python="3.12"),
        build(tmp_path, first.requirements, without_isolation=("flash-attn==2.8.3",)),
    ]
    assert len({first.hash, *(other.hash for other in others)}) == 4
    assert first.place == f"{first.target}-{first.hash}" and first.record.startswith(f"{first.place}/")


@pytest.mark.parametrize("engine", PINS)
def test_the_pins_of_each_engine_are_in_the_package(engine: str, tmp_path: Path) -> None:
    assert any(line.startswith("verl") for line in build(tmp_path, pins(engine)).lines)


@pytest.mark.parametrize(
    ("environment", "options", "said"),
    [
        ({}, {}, "environment in include/clusters/site.yaml: set venv to the directory"),
        (
            {"conda": "/c", "conda_init": "/i"},
            {},
            "environment.conda in .*: install-environment builds a venv or",
        ),
        ({"container": "docker://x"}, {}, r"environment.container in .*ends in .sif"),
        ({"container": "/x.sif", "container_runtime": "pyxis"}, {}, "only an apptainer image"),
        ({"container": "/x.sif"}, {"find_links": "/wheels"}, "--find-links: an image is built inside"),
        ({"venv": "/e"}, {"find_links": "wheels"}, "--find-links: must be an absolute path"),
        ({"venv": "/e"}, {"python": "3.11; rm"}, "--python: must be a version such as 3.11"),
        ({"venv": "/e"}, {"requirements": "# nothing\n"}, "--requirements: the file has no requirement"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_key_or_option(
    environment: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        EnvironmentBuild(cluster(environment), **{"requirements": "a==1", **options})


def test_the_job_needs_no_environment_and_has_the_modules_and_sizes_of_prepare(tmp_path: Path) -> None:
    site = cluster(
        {"venv": "/e/llm", "modules": ["python/3.11"]},
        stages={"prepare": {"partition": "cpu"}},
        partition="gpu",
    )
    resolved = EnvironmentBuild(site, "a==1").job()
    text = batch_script.render(resolved, "/w/attempt-1")
    assert "#SBATCH --partition=cpu\n" in text and "gpus" not in text
    assert "module load python/3.11" in text and "/e/llm/bin/activate" not in text


def test_uv_builds_in_place_and_the_link_is_set_last(tmp_path: Path, programs: Path) -> None:
    wanted = build(tmp_path, find_links="/my wheels", without_isolation=("flash-attn==2.8.3",))
    # Left by a build that was killed: complete is only what has the record.
    (Path(wanted.place) / "bin").mkdir(parents=True)
    (Path(wanted.place) / "bin" / "half").touch()
    done = run(tmp_path, wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (Path(wanted.place) / "bin" / "half").exists()
    assert os.readlink(wanted.target) == Path(wanted.place).name
    record = json.loads(Path(attempt_dir.environment_record(wanted.target)).read_text())
    assert (record["hash"], record["python"], record["tool"]) == (wanted.hash, "3.11", "uv 9.9")
    where, install = (
        f"{Path(wanted.target).parent}/.uv-python: ",
        f"pip install --compile-bytecode --python {wanted.place}/bin/python",
    )
    options = "--no-index --find-links /my wheels"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"{where}venv --python 3.11 {wanted.place}",
        f"{where}{install} {options} -r {wanted.requirements_file}",
        f"{where}{install} {options} --no-build-isolation flash-attn==2.8.3",
    ]
    again = run(tmp_path, wanted)
    assert "is complete: nothing to build" in again.stdout and again.returncode == 0
    assert len((tmp_path / "calls").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "dns error: failed to lookup address",
            "n7 cannot reach the package index. .*: --on-login-node. .*--find-links",
        ),
        ("OSError: [Errno 28] No space left on device", "no space for the environment on n7"),
        (
            "noise\nerror: no wheel of a\nhint: x",
            "the build on n7 ended with exit code 2: error: no wheel of a",
        ),
    ],
)
def test_a_build_that_fails_names_the_cause_and_leaves_nothing(
    output: str, said: str, tmp_path: Path, programs: Path
) -> None:
    first = build(tmp_path, "a==0")
    assert run(tmp_path, first).returncode == 0
    wanted = build(tmp_path)
    done = run(tmp_path, wanted, UV_FAILS=output)
    assert done.returncode == 1
    [error] = [line for line in done.stderr.splitlines() if line.startswith("[llm-bridge] error: ")]
    assert subprocess.run(["grep", "-qE", said], input=error, text=True).returncode == 0, error
    assert not Path(wanted.place).exists()
    # The earlier environment stays in use.
    assert os.readlink(wanted.target) == Path(first.place).name


def test_two_builds_in_one_place_exclude_each_other(tmp_path: Path, programs: Path) -> None:
    wanted = build(tmp_path)
    Path(wanted.target).parent.mkdir(parents=True)
    Path(f"{wanted.target}.lock").write_text("n3, pid 5, since yesterday\n")
    with subprocess.Popen(["flock", f"{wanted.target}.lock", "sh", "-c", "echo held; read x"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:  # fmt: skip
        assert holder.stdout and holder.stdout.readline()
        done = run(tmp_path, wanted)
        holder.communicate(b"\n")
    assert done.returncode == 1
    assert f"another build holds {wanted.target}.lock: n3, pid 5, since yesterday" in done.stderr
    assert run(tmp_path, wanted).returncode == 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (71, "cannot be locked on n7 (flock ended with exit code 71: flock: 9: No locks available): mount "),
        (127, "there is no command 'flock' (util-linux) on n7"),
    ],
)
def test_a_file_system_without_locks_is_no_other_build(
    tmp_path: Path, programs: Path, code: int, said: str
) -> None:
    """A stand-in for flock ends as util-linux' does on NFS mounted with nolock, and bash without a flock."""
    (programs / "flock").write_text(f"#!/bin/bash\necho 'flock: 9: No locks available' >&2\nexit {code}\n")
    (programs / "flock").chmod(0o755)
    done = run(tmp_path, build(tmp_path))
    assert done.returncode == 1 and said in done.stderr and "another build" not in done.stderr
    assert not (tmp_path / "calls").exists()


def test_a_directory_that_somebody_made_is_not_touched(tmp_path: Path, programs: Path) -> None:
    wanted = build(tmp_path)
    (Path(wanted.target) / "mine").mkdir(parents=True)
    done = run(tmp_path, wanted)
    assert done.returncode == 1 and "was not made by install-environment: move it" in done.stderr
    assert (Path(wanted.target) / "mine").exists() and not (tmp_path / "calls").exists()


def image(folder: Path) -> EnvironmentBuild:
    site = cluster({"container": f"{folder}/images/verl.sif"}, str(folder / "w"))
    return EnvironmentBuild(site, "a==1\n", without_isolation=("b==2",))


def test_an_image_is_built_from_a_definition_with_the_pins_and_the_record(
    tmp_path: Path, programs: Path
) -> None:
    wanted = image(tmp_path)
    done = run(tmp_path, wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert wanted.place == f"{tmp_path}/images/verl-{wanted.hash}.sif"
    assert os.readlink(wanted.target) == f"verl-{wanted.hash}.sif"
    definition = Path(wanted.place).read_text()
    assert "From: python:3.11-slim\n" in definition and "record.json /usr/local/llm-bridge-env" in definition
    assert "--no-build-isolation b==2\n" in definition and "\na==1\n" in definition
    assert json.loads(Path(f"{wanted.place}.json").read_text())["hash"] == wanted.hash


def test_where_apptainer_is_missing_the_build_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, image(tmp_path))
    assert done.returncode == 1
    assert "there is no command 'apptainer' on n7: add its module to environment.modules" in done.stderr


def test_on_the_login_node_the_script_exports_the_variables_of_the_cluster_file(tmp_path: Path) -> None:
    site = cluster({"venv": "/e"}, variables={"HTTPS_PROXY": "http://it's:1"})
    wanted = EnvironmentBuild(site, "a==1")
    assert """export HTTPS_PROXY='http://it'"'"'s:1'\n""" in wanted.script("/w/login-1")
    assert "HTTPS_PROXY" not in wanted.script().replace("set HTTPS_PROXY in", "")  # batch.sh.j2 exports them
