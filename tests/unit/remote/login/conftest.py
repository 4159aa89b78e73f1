"""Provide Slurm commands whose output and exit codes a test sets, and which record their calls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SCRIPT = """#!/bin/sh
echo "${0##*/} $*" >> "$FAKE_SLURM/calls"
cat "$FAKE_SLURM/${0##*/}.err" >&2 2> /dev/null
cat "$FAKE_SLURM/${0##*/}.out" 2> /dev/null
exit "$(cat "$FAKE_SLURM/${0##*/}.code" 2> /dev/null || echo 0)"
"""


class FakeSlurm:
    """Slurm commands on the PATH of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def set(self, command: str, output: str = "", code: int = 0, errors: str = "") -> None:
        """Set what a command prints, and its exit code."""
        (self.folder / f"{command}.out").write_text(output)
        (self.folder / f"{command}.err").write_text(errors)
        (self.folder / f"{command}.code").write_text(str(code))

    def calls(self, command: str) -> list[str]:
        """Return the arguments of each call of a command."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.split(" ")[0] == command]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Return commands that print nothing and succeed."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "squeue", "sacct", "scancel"):
        (folder / name).write_text(SCRIPT)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return FakeSlurm(folder)
