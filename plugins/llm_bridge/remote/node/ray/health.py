"""Decide when a Ray cluster has to end; pure functions without input or output, for the head guard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.remote.node.ray.dashboard_api import Row

MAX_GCS_FAILURES = 3  # checks in a row; a busy head may miss one
NOT_JOINED = "has not joined"
ACTIVE_STATES = ("PENDING", "RUNNING")  # Ray's non-terminal job states (ray/dashboard/modules/job/common.py)

# Node -> its report (node_reports.py).
ReportsByNode = Mapping[str, Row]


@dataclass(frozen=True)
class Verdict:
    """The decision that the cluster has to end.

    Attributes:
        kind: Its class; ``GUARD`` in ``diagnosis/rules.py`` maps it to a failure class.
        reason: The message for the user.
        nodes: Nodes to blame.
        exit_code: The Slurm job's.
        retry: True where a new cluster could help.
    """

    kind: str
    reason: str
    nodes: tuple[str, ...] = ()
    exit_code: int = 1
    retry: bool = True

    def as_reason(self) -> Reason:
        """Return the content of ``reason.json``."""
        return Reason(self.reason, retry=self.retry, kind=self.kind, nodes=self.nodes)


def missing(rows: list[Row], nodes: list[str], gpus: int) -> dict[str, str]:
    """Return the nodes that have not joined with all their GPUs yet, and their state in Ray.

    Args:
        rows: The nodes of Ray's state API.
        nodes: Names of all nodes of the allocation.
        gpus: Required number of GPUs of each node.
    """
    have = {row["node_name"]: int((row.get("resources_total") or {}).get("GPU", 0)) for row in _alive(rows)}
    absent = {node: NOT_JOINED for node in nodes if node not in have}
    poor = {node: f"joined with {have[node]} of {gpus} GPUs" for node in nodes if have.get(node, gpus) < gpus}
    return {**absent, **poor}


def dead(rows: list[Row], nodes: list[str]) -> Verdict | None:
    """Return a verdict if Ray has marked nodes dead, which is final: its GCS retries before (health_check_*)."""
    alive = {row["node_name"] for row in _alive(rows)}
    messages = {row["node_name"]: row.get("state_message") for row in rows if row["node_name"] not in alive}
    lost = [node for node in nodes if node in messages]
    if not lost:
        return None
    described = ", ".join(f"worker {node} died ({messages[node] or 'Ray gives no reason'})" for node in lost)
    return Verdict("worker_dead", described, tuple(lost))


def _alive(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["state"] == "ALIVE"]


def failed(reports: ReportsByNode, kind: str = "node_failed") -> Verdict | None:
    """Return a verdict if nodes report that Ray could not start or has ended; the earliest report comes first.

    Where several nodes report the same message, no node is broken: none is blamed.
    """
    bad = [node for node, report in reports.items() if report["state"] == "failed"]
    if not bad:
        return None
    bad.sort(key=lambda node: reports[node]["at"])
    same = len(bad) > 1 and len({reports[node]["message"] for node in bad}) == 1
    described = "; ".join(f"{node}: {reports[node]['message']}" for node in bad)
    return Verdict(kind, described, () if same else tuple(bad))


def step_ended(code: int, reports: ReportsByNode) -> Verdict:
    """Return the verdict for the end of the srun that runs Ray on all nodes."""
    nodes = tuple(node for node, report in reports.items() if report["state"] != "stopped")
    reason = f"the srun that runs Ray ended with exit code {code}; its output is in the job's log"
    return Verdict("step_ended", reason, nodes)


def not_joined(absent: dict[str, str], reports: ReportsByNode, count: int, minutes: float) -> Verdict:
    """Return the verdict for a deadline that passed before all nodes joined, with the last report of each missing one.

    Args:
        absent: The missing nodes and their state in Ray, from :func:`missing`.
        reports: The nodes' reports.
        count: Number of all nodes.
        minutes: The time that they had.
    """
    described = []
    for node, state in absent.items():
        if state == NOT_JOINED:
            silent = {"message": "never reported: srun could not start its task"}
            state = reports.get(node, silent)["message"]
        described.append(f"{node} ({state})")
    reason = f"{len(absent)} of {count} nodes did not join within {minutes:g} minutes: {', '.join(described)}"
    return Verdict("not_ready", reason, tuple(absent))


@dataclass(frozen=True)
class Observation:
    """One poll of a running cluster; None where a question got no answer.

    Attributes:
        now: Monotonic time in seconds.
        step_code: Exit code of the srun that runs Ray; None while it runs.
        reports: The nodes' reports.
        gcs_error: The reason why the GCS or the dashboard is unavailable.
        rows: The nodes of Ray's state API.
        busy: True if a Ray job runs or waits.
    """

    now: float
    step_code: int | None = None
    reports: ReportsByNode = field(default_factory=dict)
    gcs_error: str | None = None
    rows: list[Row] | None = None
    busy: bool | None = None


class HealthMonitor:
    """Decide after each poll if the cluster has to end.

    Args:
        nodes: Names of all nodes, the head's first.
        now: Monotonic time in seconds.
        idle_minutes: Time without a Ray job after which the cluster ends; None means never.
    """

    def __init__(self, nodes: list[str], now: float, idle_minutes: float | None) -> None:
        self.nodes, self.head, self.idle_minutes = nodes, nodes[0], idle_minutes
        self.active_at = now
        self.gcs_failures = 0

    def update(self, seen: Observation) -> Verdict | None:
        """Record one poll, and return a verdict when the cluster has to end."""
        failure = failed(seen.reports)
        if failure:
            return failure
        if seen.step_code is not None:
            return step_ended(seen.step_code, seen.reports)
        self.gcs_failures = self.gcs_failures + 1 if seen.gcs_error else 0
        if self.gcs_failures >= MAX_GCS_FAILURES:
            return Verdict("gcs_dead", f"GCS on {self.head} does not answer ({seen.gcs_error})", (self.head,))
        return dead(seen.rows or [], self.nodes) or self._idle(seen)

    def _idle(self, seen: Observation) -> Verdict | None:
        if seen.busy is not False:  # None, too: unknown is never read as idle
            self.active_at = seen.now
        if self.idle_minutes is None or seen.now - self.active_at < self.idle_minutes * 60:
            return None
        return Verdict("idle", "idle", exit_code=0, retry=False)


def busy(jobs: list[Row]) -> bool:
    """Return True if any Ray job runs or waits."""
    return any(job["status"] in ACTIVE_STATES for job in jobs)
