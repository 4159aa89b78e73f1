"""The archive of programs that travels with each attempt."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from llm_bridge.remote import attempt_dir, node_archive
from llm_bridge.remote.node.__main__ import PROGRAMS
from llm_bridge.version import VERSION

BARE_PYTHON = ["/usr/bin/python3", "-I", "-S"]
# Those that run where neither torch nor Ray need be.
STANDARD_LIBRARY_ONLY = (
    "prepare",
    "sft",
    "ppo",
    "merge",
    "evaluate",
    "upload",
    "preflight",
    "ray-head-guard",
    "ray-node-agent",
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attempt") / attempt_dir.NODE_ARCHIVE
    path.write_bytes(node_archive.build())
    return path


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BARE_PYTHON, *map(str, argv)], cwd="/", capture_output=True, text=True)


def test_the_same_sources_give_the_same_bytes() -> None:
    assert node_archive.build.__wrapped__() == node_archive.build()


def test_it_is_small_and_holds_the_packages_whole_and_nothing_of_airflows_side() -> None:
    data = node_archive.build()
    # About 185 kB: 115 kB, preflight and hooks 15 kB, evaluate/ 15 kB, rewards/ 15 kB, data/ 15 kB, PPO's rules 10 kB.
    assert len(data) < 250_000, "it travels with each attempt"
    names = set(zipfile.ZipFile(io.BytesIO(data)).namelist())
    folders = {Path(name).parent for name in names} - {Path()}
    assert all(f"{folder}/__init__.py" in names for folder in folders)
    roots = {name.split("/")[1] for name in names if "/" in name}
    assert roots == {"__init__.py", "version.py", "remote"}
    assert not [name for name in names if name.startswith("llm_bridge/remote/login")]


def test_without_a_program_it_lists_those_there_are(archive: Path) -> None:
    done = run(archive, "nope")
    assert done.returncode == 1
    assert all(name in done.stderr for name in PROGRAMS)


def test_every_program_is_a_module_of_it(archive: Path) -> None:
    names = set(zipfile.ZipFile(archive).namelist())
    for module in PROGRAMS.values():
        assert f"llm_bridge/remote/node/{module.replace('.', '/')}.py" in names
        assert importlib.util.find_spec(f"llm_bridge.remote.node.{module}")


@pytest.mark.parametrize("program", STANDARD_LIBRARY_ONLY)
def test_a_program_loads_in_a_bare_python(program: str, archive: Path) -> None:
    """What it needs beyond the standard library it imports later, where it can say what is missing."""
    code = f"import sys; sys.path.insert(0, {str(archive)!r})\n"
    code += f"import llm_bridge.remote.node.{PROGRAMS[program]} as module; assert callable(module.main)"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_program_finds_the_archive_that_it_runs_from(archive: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(archive)!r})\n"
    code += "from llm_bridge.remote.node.common import programs\n"
    code += "import llm_bridge; print(llm_bridge.__version__)\n"
    code += "print(programs.command('prepare', 'x')[1:], programs.python_path({'PYTHONPATH': '/own'}))"
    assert run("-c", code).stdout.splitlines() == [VERSION, f"['{archive}', 'prepare', 'x'] {archive}:/own"]
