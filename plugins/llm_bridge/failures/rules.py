"""From evidence to a diagnosis: rules in the order in which their evidence is trusted. Nothing here asks anybody.

Slurm's verdict comes first, then the job's own word (reason.json), then Ray's, then the earliest root cause in the
logs, then what exit codes and memory suggest; what other ranks say when one has failed comes last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llm_bridge.failures.diagnosis import Diagnosis, titled
from llm_bridge.failures.evidence import Evidence, Match, in_lines
from llm_bridge.failures.kinds import KINDS
from llm_bridge.slurm.states import FORGOTTEN, Phase


class Finding(NamedTuple):
    """What one rule has found."""

    kind: str
    evidence: str
    source: str = ""
    node: str | None = None
    advice: str = ""


Rule = Callable[[Evidence], Finding | None]

# A job that was ended by its time limit after so long, having used so small a share of one CPU, stood still: "A
# TIMEOUT is not evidence that the job needed more time" (slurmpast). A training's processes poll, even while they wait.
HANG_SECONDS = 900.0
HANG_CPU_SHARE = 0.01
# MaxRSS is sampled every 30 s (JobAcctGatherFrequency), so the last peak may be missing.
FULL_MEMORY = 0.9

STATES = {
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "OUT_OF_MEMORY": "host_oom",
    "TIMEOUT": "time_limit",
    "DEADLINE": "time_limit",
    "CANCELLED": "cancelled",
}
# What the Ray cluster's guard says (include/jobs/ray_health.py): up to "ready", and afterwards.
GUARD = {
    **dict.fromkeys(
        ("not_ready", "not_started", "cannot_start", "test_failed", "wrong_node", "internal_error"),
        "ray_bring_up",
    ),
    **dict.fromkeys(("worker_dead", "gcs_dead", "node_failed", "step_ended"), "node_failure"),
    "wrong_size": "bad_config",
    "idle": "ray_bring_up",
    "preflight": "bad_node",
}
# ray/dashboard/modules/job/common.py: JobErrorType; the others say no more than that the entrypoint failed.
RAY_ERRORS = {
    "RUNTIME_ENV_SETUP_FAILURE": "environment",
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": "ray_bring_up",
    "JOB_SUPERVISOR_ACTOR_START_FAILURE": "ray_bring_up",
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": "ray_bring_up",
    "JOB_SUPERVISOR_ACTOR_DIED": "node_failure",
}


def diagnose(evidence: Evidence) -> Diagnosis:
    """The diagnosis; ``next`` is still empty, because that depends on what happened before."""
    found = next((f for rule in RULES if (f := rule(evidence))), None) or _unknown(evidence)
    spent, lost = _gpu_hours(evidence)
    return titled(
        found.kind,
        found.evidence,
        advice=found.advice,
        source=found.source,
        node=found.node or None,
        attempt=evidence.attempt,
        of=evidence.of,
        gpu_hours=spent,
        lost_gpu_hours=lost,
        step=evidence.step,
    )


def own_limit(evidence: Evidence) -> Finding | None:
    """We ended the job ourselves, and know why."""
    if evidence.notice == "timeout" or (evidence.ray or {}).get("status") == "TIMEOUT":
        return Finding(
            "task_limit", "the task's own time limit had passed, so llm-bridge cancelled the job", "Airflow"
        )
    if evidence.notice.startswith("hang"):
        return Finding("hang", evidence.notice, "llm-bridge", _nodes(evidence))
    if evidence.info is None and evidence.notice.startswith(FORGOTTEN):
        return Finding("forgotten", evidence.notice, "Slurm")
    return None


def slurm_state(evidence: Evidence) -> Finding | None:
    """Slurm knows of preemption, lost nodes, limits, memory and cancels what no log can know better."""
    told, info = evidence.accounting, evidence.info
    state = info.state.split(" ")[0].rstrip("+") if info else ""
    if info and info.phase in (Phase.WAITING, Phase.RUNNING):  # a Ray cluster that Slurm has put back
        return _put_back(evidence)
    if told and told.oom_step:
        return Finding(
            "host_oom", f"step {told.oom_step} OUT_OF_MEMORY, {_memory(evidence)}", "sacct", _nodes(evidence)
        )
    kind = STATES.get(state)
    if kind is None or info is None:
        return None
    line = _line(evidence, "slurm_preempted", "slurm_time_limit", "slurm_node_cancel")
    if kind == "cancelled" and line:  # some sites' preemption cancels
        return Finding(
            line.signature.kind, line.text, line.source, _failed_node(evidence, line.signature.kind)
        )
    if kind == "cancelled":
        return Finding(
            kind, f"{_who(evidence)} cancelled Slurm job {evidence.job_id}", "sacct" if told else "squeue"
        )
    if kind == "time_limit" and (stood_still := _stood_still(evidence)):
        return stood_still
    said = f"{state}{f', reason {info.reason}' if info.reason else ''}{f', on {info.nodes}' if info.nodes else ''}"
    if kind == "host_oom":
        said += f", {_memory(evidence)}"
    return Finding(kind, said, "sacct" if told else "squeue", _failed_node(evidence, kind))


def own_word(evidence: Evidence) -> Finding | None:
    """The job explains its end in reason.json: its class where it names one, else what its text shows."""
    reason = evidence.reason
    if not reason:
        return None
    text, nodes = str(reason.get("reason") or ""), ", ".join(reason.get("nodes") or ()) or None
    kind = str(reason.get("kind") or "")
    # A node that the guard names may have died of something that the log tells: that is looked for first.
    if GUARD.get(kind) == "node_failure" and (root := root_cause(evidence)) and root.kind != "node_failure":
        return root
    matches = [m for m in in_lines([text]) if not m.signature.cascade]
    if matches and kind not in KINDS:
        first = matches[0]
        return Finding(first.signature.kind, text, "reason.json", nodes or first.node, first.signature.advice)
    if kind in KINDS or kind in GUARD:
        return Finding(GUARD.get(kind, kind), text, "reason.json", nodes)
    if reason.get("retry") is False:  # the log may tell more than "its output is above"
        return root_cause(evidence) or Finding("bad_config", text, "reason.json", nodes)
    if nodes:
        return Finding("bad_node", text, "reason.json", nodes)
    return None


def ray_word(evidence: Evidence) -> Finding | None:
    """Ray says why it could not start a job, or that its supervisor died with its node."""
    ray = evidence.ray or {}
    kind = RAY_ERRORS.get(str(ray.get("error_type") or ""))
    if kind is None:
        return None
    message = str(ray.get("message") or "").strip()
    if kind == "node_failure" and (root := root_cause(evidence)):
        return root
    return Finding(kind, f"{ray['error_type']}: {message[-400:]}".strip(": "), "Ray", _nodes(evidence))


def root_cause(evidence: Evidence) -> Finding | None:
    """The earliest root cause in the most telling log that has one."""
    roots = [m for m in evidence.found if not m.signature.cascade]
    return _finding(evidence, min(roots, key=_place)) if roots else None


def no_room(evidence: Evidence) -> Finding | None:
    """A small write into the workspace is refused right now."""
    if not evidence.full:
        return None
    return Finding(
        "disk_full", f"{evidence.full}: a write of 64 KiB into the workspace is refused", "the file system"
    )


def killed_for_memory(evidence: Evidence) -> Finding | None:
    """Without memory cgroups Slurm says FAILED 0:9 of a job that used too much (measured, 22.05)."""
    told, info = evidence.accounting, evidence.info
    killed = info is not None and (info.signal == 9 or info.exit_code in (137, 9))
    if not killed or not told or not told.node_mem or told.max_rss < FULL_MEMORY * told.node_mem:
        return None
    return Finding("host_oom", f"killed by SIGKILL, {_memory(evidence)}", "sacct", _nodes(evidence))


def exit_code(evidence: Evidence) -> Finding | None:
    """The shell's own exit codes, and Slurm's for an output file that it could not write."""
    info, ray = evidence.info, evidence.ray or {}
    code = ray.get("driver_exit_code") if ray else info.exit_code if info else 0
    if code in (126, 127):
        what = "was not found" if code == 127 else "may not be executed"
        return Finding(
            "environment", f"exit code {code}: a command {what}; {evidence.last_line}", "its exit code"
        )
    if info and info.signal == 53:
        return Finding("missing_path", "0:53: Slurm could not write the job's output", "sacct")
    return None


def cascade(evidence: Evidence) -> Finding | None:
    """Nothing explains it but what follows from something: a lost connection, a killed process."""
    known = [m for m in evidence.found if m.signature.cascade]
    named = [m for m in known if m.signature.kind != "unknown"]
    best = named or [m for m in known if m.signature.advice] or known
    return _finding(evidence, min(best, key=_place)) if best else None


def _unknown(evidence: Evidence) -> Finding:
    reason = (evidence.reason or {}).get("reason")
    if reason:
        return Finding("unknown", str(reason), "reason.json")
    line = evidence.last_line or evidence.notice
    return Finding(
        "unknown", line or "it left no word", "last line of its output" if evidence.last_line else ""
    )


RULES: tuple[Rule, ...] = (
    own_limit,
    slurm_state,
    own_word,
    ray_word,
    root_cause,
    no_room,
    killed_for_memory,
    exit_code,
    cascade,
)


def _finding(evidence: Evidence, match: Match) -> Finding:
    signature = match.signature
    node = match.node or _failed_node(evidence, signature.kind)
    return Finding(signature.kind, match.text, match.source, node, signature.advice)


def _place(match: Match) -> tuple[int, str, int]:
    """Earlier lines first, in the more telling log first; lines without a number are near a long log's end."""
    return match.order, match.file, match.line if match.line is not None else 2**62


def _line(evidence: Evidence, *ids: str) -> Match | None:
    return next((m for m in evidence.found if m.id in ids), None)


def _failed_node(evidence: Evidence, kind: str) -> str | None:
    """Which node it was: srun names it, or Slurm shows it as down; of a job on one node there is no question."""
    if kind not in ("node_failure", "gpu_hardware"):
        return None
    if evidence.down:
        return ", ".join(evidence.down)
    named = _line(evidence, "slurm_node", "xid", "ray_node_dead")
    return named.node if named and named.node else _nodes(evidence)


def _nodes(evidence: Evidence) -> str | None:
    """The job's node, if it has one only."""
    names = evidence.info.nodes if evidence.info else ""
    return names if names and not any(sign in names for sign in ",[ ") else None


def _put_back(evidence: Evidence) -> Finding:
    earlier = evidence.accounting.earlier if evidence.accounting else ()
    last = earlier[-1].split(" ")[0] if earlier else ""
    kind = "node_failure" if last == "NODE_FAIL" else "preempted"
    said = f" after {last}" if last else ""
    return Finding(kind, f"Slurm has put job {evidence.job_id} back into the queue{said}", "squeue")


def _who(evidence: Evidence) -> str:
    told = evidence.accounting
    if not told or not told.cancelled_by:
        return "somebody"
    uid = told.cancelled_by
    return f"{(evidence.users or {}).get(uid, 'user')} (uid {uid})"


def _stood_still(evidence: Evidence) -> Finding | None:
    told = evidence.accounting
    if not told or told.elapsed < HANG_SECONDS or not told.cpu_seconds:
        return None
    if told.cpu_seconds > HANG_CPU_SHARE * told.elapsed or (evidence.step or 0) > (evidence.before or 0):
        return None
    text = f"{told.cpu_seconds:.0f} s of CPU time in {told.elapsed:.0f} s until its time limit, and no new checkpoint"
    return Finding("hang", text, "sacct", _nodes(evidence))


def _memory(evidence: Evidence) -> str:
    told = evidence.accounting
    if not told or not told.max_rss:
        return "MaxRSS unknown"
    asked = f" of {told.node_mem / 2**30:.2f} GiB a node" if told.node_mem else ""
    return f"MaxRSS {told.max_rss / 2**30:.2f} GiB{asked}"


def _gpu_hours(evidence: Evidence) -> tuple[float | None, float | None]:
    """Spent by the attempt; and since its last complete checkpoint, which is all of it where it made none."""
    seconds = evidence.seconds
    if seconds is None or not evidence.gpus:
        return None, None
    hours = evidence.gpus * seconds / 3600
    if not evidence.trains:
        return round(hours, 3), None
    lost = seconds
    if evidence.saved_at and evidence.started and evidence.ended and evidence.saved_at > evidence.started:
        lost = max(0.0, evidence.ended - evidence.saved_at)
    return round(hours, 3), round(evidence.gpus * min(lost, seconds) / 3600, 3)
