"""Sections about waiting for jobs: ends noticed, RPCs, SSH connections. They show the same runs."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.bench.following import OURS, WATCHERS, follow
from benchmarks.bench.support import Bench, Figure, Section

# Jobs, and seconds within which they end: with MANY ten end each second.
FEW, FEW_WINDOW = 100, 60.0
MANY, MANY_WINDOW = 500, 50.0


def run(bench: Bench) -> dict[str, Any]:
    """Follow 100 jobs with everybody, and 500 with llm-bridge."""
    found = {}
    for name in WATCHERS:
        try:
            found[f"{name} {FEW}"] = follow(bench, name, FEW, FEW_WINDOW)
        except (Exception, SystemExit) as error:
            # A peer that fails costs its own row only.
            if name == OURS:
                raise
            print(f"bench: {name}: {error}", file=sys.stderr)
    return found | {f"{OURS} {MANY}": follow(bench, OURS, MANY, MANY_WINDOW)}


def _late(found: dict[str, Any], key: str, share: str) -> float | None:
    value = found[key]["late_s"][share] if key in found else None
    return None if value is None else float(value)


def _peers(found: dict[str, Any], *path: str) -> dict[str, float | None]:
    values = {}
    for name in WATCHERS:
        part: Any = found.get(f"{name} {FEW}")
        if name != OURS and part is not None:
            for key in path:
                part = part[key]
            values[name] = part
    return values


def figures(found: dict[str, Any]) -> list[Figure]:
    """Return the seconds after which ends were noticed."""
    rows = []
    for share, goal in (("p50", 1.0), ("p95", 2.0)):
        peers = _peers(found, "late_s", share)
        rows.append(
            Figure(f"end noticed, {FEW} jobs, {share}, s", _late(found, f"{OURS} {FEW}", share), goal, peers)
        )
    for share, goal in (("p50", 1.0), ("p95", 2.0)):
        rows.append(
            Figure(f"end noticed, {MANY} jobs, {share}, s", _late(found, f"{OURS} {MANY}", share), goal)
        )
    missed = {name: found[f"{name} {FEW}"]["not_noticed"] for name in WATCHERS if f"{name} {FEW}" in found}
    if any(missed.values()):
        rows.append(Figure(f"ends not noticed, of {FEW}", missed.pop(OURS), 0, missed))
    return rows


def rpc_figures(found: dict[str, Any]) -> list[Figure]:
    """Return the RPCs a minute of slurmctld and slurmdbd together."""
    rows = []
    for phase, what in (("waiting", "jobs wait"), ("ending", "jobs end")):

        def both(key: str, phase: str = phase) -> float:
            part = found[key][phase]
            return round(float(part["slurmctld_a_minute"] + part["slurmdbd_a_minute"]), 1)

        peers = {
            name: both(f"{name} {FEW}") for name in WATCHERS if name != OURS and f"{name} {FEW}" in found
        }
        for jobs in (FEW, MANY):
            if f"{OURS} {jobs}" in found:
                note = "squeue's two RPCs count as two; the user's own, by sdiag and sacctmgr show stats"
                rows.append(
                    Figure(
                        f"RPCs a minute while {jobs} {what}",
                        both(f"{OURS} {jobs}"),
                        4,
                        peers if jobs == FEW else {},
                        note=note,
                    )
                )
    return rows


def run_rpcs(bench: Bench) -> dict[str, Any]:
    """Follow 500 jobs of which ten end each second, and 100 with the nearest peer."""
    peer = "SSHRemoteJobOperator"
    keys = [(OURS, FEW, FEW_WINDOW), (peer, FEW, FEW_WINDOW), (OURS, MANY, MANY_WINDOW)]
    return {f"{name} {jobs}": follow(bench, name, jobs, window) for name, jobs, window in keys}


def connection_figures(found: dict[str, Any]) -> list[Figure]:
    """Return the SSH connections from submission to the last end."""
    peers = {
        name: found[f"{name} {FEW}"]["connections"].get("connections", 0)
        for name in WATCHERS
        if name not in (OURS, "submitit") and f"{name} {FEW}" in found
    }
    ours = found[f"{OURS} {FEW}"]["connections"].get("connections", 0)
    return [Figure(f"SSH connections, {FEW} jobs from submission to end", ours, 1, peers, note="sshd's log")]


NOTICE = Section("notice", "Ends noticed", run, figures)
RPCS = Section("rpcs", "Load on Slurm", run_rpcs, rpc_figures)
CONNECTIONS = Section("connections", "SSH", run_rpcs, connection_figures)
