"""No process is left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import llm_bridge

PLUGINS = Path(llm_bridge.__file__).parents[1]


def test_no_descendant_survives_the_end_not_even_one_that_hides_and_ignores_signals(tmp_path: Path) -> None:
    hidden = "trap '' TERM USR1; sleep 300 & wait"
    program = f"""
import os, pathlib, sys, time
sys.path.insert(0, {str(PLUGINS)!r})
from llm_bridge.remote.node.ray import supervise
supervise.adopt_orphans()
log = pathlib.Path({str(tmp_path / "log")!r})
pid, let_go = supervise.start_held(["/bin/bash", "-c", "setsid bash -c \\"{hidden}\\" & exit 0"], log)
let_go()
time.sleep(0.5)
found = supervise.descendants(os.getpid())
assert len(found) >= 2, found
supervise.end_children(0.3)
assert supervise.descendants(os.getpid()) == []
"""
    before = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
    assert time.monotonic() - before < 10
