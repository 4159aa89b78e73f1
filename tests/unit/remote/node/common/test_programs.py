"""Other programs of the archive that a program runs from."""

from __future__ import annotations

import os
import subprocess
import sys

from llm_bridge.remote.node.common import programs


def test_another_program_runs_in_the_same_python_from_the_same_archive() -> None:
    assert programs.command("sft", "a b") == [sys.executable, str(programs.ARCHIVE), "sft", "a b"]


def test_other_processes_can_import_the_package_and_keep_the_users_path() -> None:
    path = programs.python_path({"PYTHONPATH": "/own"})
    assert path.split(os.pathsep) == [str(programs.ARCHIVE), "/own"]
    assert programs.python_path({}) == str(programs.ARCHIVE)
    code = "import llm_bridge.remote.node.common.programs"
    environ = {"PYTHONPATH": path, "PATH": os.environ["PATH"]}
    assert subprocess.run([sys.executable, "-S", "-c", code], env=environ, cwd="/").returncode == 0
