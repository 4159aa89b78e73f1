"""What the guard decides, from what it sees: no input or output here."""

from __future__ import annotations

from dataclasses import dataclass, field

GCS_FAILURES = 3  # checks in a row; a busy head may miss one
NOT_JOINED = "has not joined"
ACTIVE = ("PENDING", "RUNNING")  # Ray's job states that are no end (ray/dashboard/modules/job/common.py)


@dataclass(frozen=True)
class Verdict:
    """The cluster has to end, and why."""

    kind: str
    reason: str
    nodes: tuple[str, ...] = ()
    exit_code: int = 1
    retry: bool = True  # whether a new cluster could help

    def as_json(self) -> dict:
        """Content of reason.json."""
        node = {"node": self.nodes[0]} if self.nodes else {}
        about = {"reason": self.reason, "kind": self.kind, "retry": self.retry}
        return {**about, **node, "nodes": list(self.nodes)}


def missing(rows: list[dict], nodes: list[str], gpus: int) -> dict[str, str]:
    """Nodes that are not there with all their GPUs yet -> what Ray knows of them.

    Args:
        rows: the nodes of Ray's state API.
        nodes: names of all nodes of the allocation.
        gpus: how many each has to bring.
    """
    have = {row["node_name"]: int((row.get("resources_total") or {}).get("GPU", 0)) for row in _alive(rows)}
    absent = {node: NOT_JOINED for node in nodes if node not in have}
    poor = {node: f"joined with {have[node]} of {gpus} GPUs" for node in nodes if have.get(node, gpus) < gpus}
    return {**absent, **poor}


def dead(rows: list[dict], nodes: list[str]) -> Verdict | None:
    """Nodes that Ray has given up, which is for ever: its GCS asked several times before (health_check_*)."""
    alive = {row["node_name"] for row in _alive(rows)}
    gone = {row["node_name"]: row.get("state_message") for row in rows if row["node_name"] not in alive}
    lost = [node for node in nodes if node in gone]
    if not lost:
        return None
    told = ", ".join(f"worker {node} died ({gone[node] or 'Ray does not say why'})" for node in lost)
    return Verdict("worker_dead", told, tuple(lost))


def _alive(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["state"] == "ALIVE"]


def failed(reports: dict[str, dict], kind: str = "node_failed") -> Verdict | None:
    """Nodes that say themselves that Ray could not start or has ended; the first one to say so comes first.

    Where several say the very same it is not a node that is broken: none is blamed.
    """
    bad = [node for node, report in reports.items() if report["state"] == "failed"]
    if not bad:
        return None
    bad.sort(key=lambda node: reports[node]["at"])
    same = len(bad) > 1 and len({reports[node]["message"] for node in bad}) == 1
    told = "; ".join(f"{node}: {reports[node]['message']}" for node in bad)
    return Verdict(kind, told, () if same else tuple(bad))


def step_ended(code: int, reports: dict[str, dict]) -> Verdict:
    """Srun is over, so Ray is."""
    nodes = tuple(node for node, report in reports.items() if report["state"] != "stopped")
    reason = f"the srun that holds Ray ended with code {code}; what it said is in the job's log"
    return Verdict("step_ended", reason, nodes)


def not_joined(gone: dict[str, str], reports: dict[str, dict], count: int, minutes: float) -> Verdict:
    """The deadline has passed: name the nodes that are not there, with what they last said of themselves."""
    told = []
    for node, why in gone.items():
        if why == NOT_JOINED:
            silent = {"message": "gave no sign of life: srun could not start its task"}
            why = reports.get(node, silent)["message"]
        told.append(f"{node} ({why})")
    reason = f"{len(gone)} of {count} nodes did not join within {minutes:g} minutes: {', '.join(told)}"
    return Verdict("not_ready", reason, tuple(gone))


@dataclass(frozen=True)
class Seen:
    """One look at a running cluster; None where the question got no answer."""

    now: float
    step_code: int | None = None
    reports: dict[str, dict] = field(default_factory=dict)
    gcs_error: str | None = None
    rows: list[dict] | None = None
    busy: bool | None = None


class Watch:
    """Decides after each look whether the cluster goes on."""

    def __init__(self, nodes: list[str], now: float, idle_minutes: float | None) -> None:
        self.nodes, self.head, self.idle_minutes = nodes, nodes[0], idle_minutes
        self.active_at = now
        self.gcs_failures = 0

    def look(self, seen: Seen) -> Verdict | None:
        """Take in one look; a Verdict when the cluster has to end."""
        at_once = failed(seen.reports)
        if at_once:
            return at_once
        if seen.step_code is not None:
            return step_ended(seen.step_code, seen.reports)
        self.gcs_failures = self.gcs_failures + 1 if seen.gcs_error else 0
        if self.gcs_failures >= GCS_FAILURES:
            return Verdict("gcs_dead", f"GCS on {self.head} does not answer ({seen.gcs_error})", (self.head,))
        return dead(seen.rows or [], self.nodes) or self._idle(seen)

    def _idle(self, seen: Seen) -> Verdict | None:
        if seen.busy is not False:  # also when unknown: that is never read as idle
            self.active_at = seen.now
        if self.idle_minutes is None or seen.now - self.active_at < self.idle_minutes * 60:
            return None
        return Verdict("idle", "idle", exit_code=0, retry=False)


def busy(jobs: list[dict]) -> bool:
    """Whether any Ray job runs or waits."""
    return any(job["status"] in ACTIVE for job in jobs)
