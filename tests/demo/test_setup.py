"""What setup.sh says where it cannot install."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_setup(tmp_path: Path, **stubs: str) -> subprocess.CompletedProcess[str]:
    """Run it with some commands replaced by small scripts."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name, script in stubs.items():
        (bin_dir / name.replace("_", "-")).write_text(f"#!/bin/bash\n{script}\n")
        (bin_dir / name.replace("_", "-")).chmod(0o755)
    env = {**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}", "LLM_BRIDGE_HOME": str(tmp_path / "home")}
    return subprocess.run(
        ["bash", str(ROOT / "setup.sh")], env=env, capture_output=True, text=True, timeout=60, check=False
    )


ALL_BUT_MUNGE = '[ "${@: -1}" = munge ] && exit 1; echo installed'


def test_without_root_the_missing_packages_are_named(tmp_path: Path):
    done = run_setup(tmp_path, dpkg_query=ALL_BUT_MUNGE, id="echo 1000")
    assert done.returncode == 1
    assert "not root" in done.stderr and done.stderr.rstrip().endswith("--no-install-recommends munge")


def test_a_failed_step_shows_the_end_of_its_log(tmp_path: Path):
    apt = 'echo "E: no network"; exit 100'
    done = run_setup(tmp_path, dpkg_query=ALL_BUT_MUNGE, id="echo 0", apt_get=apt)
    log = tmp_path / "home" / "logs" / "apt.log"
    assert done.returncode == 1
    assert str(log) in done.stderr and "    E: no network" in done.stderr and "make setup" in done.stderr
    assert log.read_text() == "E: no network\n", "install must not be tried after a failed update"


def test_environments_that_are_up_to_date_are_left_alone():
    for _ in range(2):  # the first may find something to do
        done = subprocess.run(
            ["bash", str(ROOT / "setup.sh")], capture_output=True, text=True, timeout=900, check=True
        )
    assert "installed" not in done.stdout
    assert float(done.stdout.split("ready in ")[1].split()[0]) < 5, "it takes 0.2 s on a machine that is free"
