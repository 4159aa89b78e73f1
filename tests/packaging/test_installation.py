"""Both ways to install llm-bridge: as a wheel, with an empty plugins folder, and as folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_bridge.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
DAGS = {
    *("cluster_doctor", "generate_answers", "post_training", "reap_orphans", "sweep_post_training"),
    *("nightly_tiny_cpu", "nightly_gsm8k_llama32_1b"),
}
PARSE = """
import json, os
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(dag_folder=os.environ["AIRFLOW_HOME"] + "/dags")
import llm_bridge
print("PARSED", json.dumps([sorted(bag.dags), bag.import_errors, llm_bridge.__file__]))
"""
# The texts that are sent to a cluster come out of the installed package.
SEND = """
import json, subprocess, sys
from llm_bridge.remote import helpers, node_archive
from llm_bridge.slurm import batch_script
from llm_bridge.slurm.environment_build import PINS, pins
assert all("verl" in pins(engine) for engine in PINS)
open(sys.argv[1], "wb").write(node_archive.build())
line = helpers.first_line("check_site", {"workspace": sys.argv[2], "readable": {"/nonexistent/model": "base_model"}})
done = subprocess.run(helpers.argv("python3"), input=line, stdout=subprocess.PIPE, check=True)
print("ANSWER", done.stdout.decode())
"""


@dataclass(frozen=True)
class Installation:
    """One Airflow with llm-bridge."""

    python: Path
    home: Path
    package: Path

    def run(self, *argv: str) -> str:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        env = {**kept, "HOME": str(self.home), "AIRFLOW_HOME": str(self.home / "airflow")}
        env |= {"AIRFLOW__CORE__LOAD_EXAMPLES": "False", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [str(self.python), *argv], env=env, capture_output=True, text=True, cwd=self.home
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def airflow(self, *argv: str) -> str:
        return self.run("-m", "airflow", *argv)


def environment(folder: Path) -> Path:
    """A virtual environment that sees all packages of this one; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [site] = (folder / "lib").glob("python*/site-packages")
    (site / "airflow.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def users_folders(home: Path) -> None:
    shutil.copytree(ROOT / "dags", home / "airflow" / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "include", home / "airflow" / "include")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "plugins", source / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", target, source], check=True
    )
    [built] = target.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=["wheel", "folders"])
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    home = tmp_path_factory.mktemp(request.param)
    users_folders(home)
    python = environment(home / "env")
    if request.param == "wheel":
        built = request.getfixturevalue("wheel")
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", built], check=True)
        (home / "airflow" / "plugins").mkdir()
        return Installation(python, home, home / "env")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "plugins", home / "airflow" / "plugins", ignore=ignored)
    return Installation(python, home, home / "airflow" / "plugins")


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("llm_bridge/")}
    files = (path for path in (ROOT / "plugins" / "llm_bridge").rglob("*") if path.is_file())
    expected = {str(path.relative_to(ROOT / "plugins")) for path in files if "__pycache__" not in path.parts}
    assert packed == expected


def test_airflow_parses_the_dags_with_the_installed_package(installation: Installation) -> None:
    script = installation.home / "parse.py"
    script.write_text(PARSE)
    output = installation.run(str(script))
    dags, errors, file = json.loads(output.partition("PARSED ")[2])
    assert errors == {}
    assert set(dags) == DAGS
    assert Path(file).is_relative_to(installation.package)


def test_airflow_loads_the_plugin_once(installation: Installation) -> None:
    output = installation.airflow("plugins", "-o", "json")
    plugins = json.loads(output[output.index("[") :])
    assert [plugin["name"] for plugin in plugins].count("llm_bridge") == 1


def test_airflow_lists_the_wheel_as_a_provider(installation: Installation) -> None:
    output = installation.airflow("providers", "list", "-o", "json")
    providers = {row["package_name"]: row["version"] for row in json.loads(output[output.index("[") :])}
    # A plugins folder has no entry points: Airflow cannot list what is in it.
    expected = VERSION if installation.package.name == "env" else None
    assert providers.get("llm-bridge") == expected


def test_helpers_and_the_node_archive_come_out_of_the_installed_package(
    installation: Installation, tmp_path: Path
) -> None:
    archive = tmp_path / "node.pyz"
    script = installation.home / "send.py"
    script.write_text(
        f"import sys; sys.path.append({str(installation.home / 'airflow' / 'plugins')!r})\n{SEND}"
    )
    answer = json.loads(installation.run(str(script), str(archive), str(tmp_path)).partition("ANSWER ")[2])
    assert "/nonexistent/model" in " ".join(finding["detail"] for finding in answer["findings"])
    usage = subprocess.run([sys.executable, "-I", archive, "no-such-program"], capture_output=True, text=True)
    assert usage.returncode != 0 and "merge" in usage.stderr
