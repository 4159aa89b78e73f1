"""The random mode: many small jobs while anything breaks at any time, and a verdict in build/chaos/report.json.

CHAOS_FAULTS=n says how many things break, CHAOS_SEED=n which ones, CHAOS_ORPHAN_SECONDS=n how long after the last run's
end the queue is looked at for jobs that nobody wants any more.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import time
from typing import Any

from testing.paths import ROOT
from tests.chaos.conftest import SHORT
from tests.chaos.faults import Faults
from tests.chaos.load import Load
from tests.chaos.stack import ChaosStack
from tests.chaos.verdict import judge

FAULTS = int(os.environ.get("CHAOS_FAULTS", "6" if SHORT else "200"))
# The short form is part of `make test`: there the same things break every time.
SEED = int(os.environ.get("CHAOS_SEED", "1" if SHORT else random.randrange(10**6)))
ORPHAN_SECONDS = float(os.environ.get("CHAOS_ORPHAN_SECONDS", "20" if SHORT else "900"))
DRAIN_SECONDS = 2400  # more than poller.UNLISTED_TIMEOUT_SECONDS


def test_whatever_breaks_no_job_is_doubled_lost_orphaned_or_ended_and_no_line_of_it_lost(
    stack: ChaosStack,
) -> None:
    print(f"\nCHAOS_FAULTS={FAULTS} CHAOS_SEED={SEED}")
    began = time.monotonic()
    faults, load = Faults(stack, SEED), Load(stack, SEED)
    stack.airflow.revive("second", kind="triggerer")
    over = threading.Event()
    breaking = threading.Thread(target=lambda: (faults.inject(FAULTS), over.set()))
    breaking.start()
    load.work(over, DRAIN_SECONDS)
    breaking.join()
    broken_for = time.monotonic() - began
    time.sleep(ORPHAN_SECONDS)
    left = queue(stack)
    if left:
        stack.trigger("sweep", "sweep")
        stack.finished("sweep", "sweep")
    orphaned = queue(stack)
    numbers, found = judge(stack.ledger, load.runs, faults.stalls)
    report: dict[str, Any] = {
        "seed": SEED,
        "faults": sum(faults.counts.values()),
        "faults by kind": dict(faults.counts.most_common()),
        "not injected": faults.failed,
        "minutes": round(broken_for / 60, 1),
        **numbers,
        "user actions": sum(run.acted for run in load.runs),
        **{word: len(sentences) for word, sentences in found.items()},
        "orphan seconds": ORPHAN_SECONDS,
        "left for the sweep": len(left),
        "orphaned": len(orphaned),
        "what": {**{word: sentences for word, sentences in found.items() if sentences}, "left": left},
        "injected": faults.times,
        "stories": {
            run.name: stack.ledger.story(run.name, 0)
            for run in load.runs
            if any(fault.startswith(f"{run.name}:") for sentences in found.values() for fault in sentences)
        },
    }
    path = ROOT / "build" / "chaos" / "report.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    shutil.copy(stack.cluster.settings.log_dir / "ctl" / "slurmctld.log", path.parent)
    shown = {name: value for name, value in report.items() if name not in ("what", "injected", "stories")}
    print(json.dumps(shown, indent=2))
    assert not any(found.values()) and not orphaned, f"CHAOS_SEED={SEED}: see {path}"
    assert numbers["lives"] > FAULTS / 4 and report["faults"] > 0.8 * FAULTS


def queue(stack: ChaosStack) -> list[str]:
    """Jobs of the storm that wait or run; all of its runs are over."""
    rows = stack.slurm("squeue", "-h", "-o", "%i %j %T").splitlines()
    names = {a.owner["key"]: a.owner["run_id"] for a in stack.ledger.attempts("run-*")}
    return [f"{row} of {names[row.split()[1]]}" for row in rows if row.split()[1] in names]
