"""Rules that turn evidence into a diagnosis. They are pure functions, ordered by how far their evidence is trusted.

The job's state in Slurm comes first, then the job's own explanation (``reason.json``), Ray's error type, the earliest
root cause in the logs, exit codes and memory use. Messages of other ranks after one rank has failed come last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llm_bridge.diagnosis.classes import CLASSES
from llm_bridge.diagnosis.evidence import Evidence, SignatureMatch, in_lines
from llm_bridge.diagnosis.report import Diagnosis, titled
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm.status import Phase


class Finding(NamedTuple):
    """Result of one rule.

    Attributes:
        kind: Failure class.
        evidence: Line that shows the cause.
        source: Source of the evidence.
        node: Node at fault; None if unknown.
        advice: Steps for the user; empty for those of the class.
    """

    kind: str
    evidence: str
    source: str = ""
    node: str | None = None
    advice: str = ""


Rule = Callable[[Evidence], Finding | None]

# A job that reached its time limit hung if it ran at least this long and used at most this share of one CPU: "A TIMEOUT
# is not evidence that the job needed more time" (slurmpast). The processes of a sound training poll while they wait.
MIN_HANG_SECONDS = 900.0
MAX_HANG_CPU_SHARE = 0.01
# Share of the requested memory from which a SIGKILL counts as out of memory: MaxRSS is sampled every 30 s
# (JobAcctGatherFrequency), so the last peak may be missing.
MIN_FULL_MEMORY_SHARE = 0.9

# Failure class by Slurm's job state.
STATES = {
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "OUT_OF_MEMORY": "host_oom",
    "TIMEOUT": "time_limit",
    "DEADLINE": "time_limit",
    "CANCELLED": "cancelled",
}
# Failure class by the kind of the Ray head guard's verdict (remote/node/ray/head_guard.py, health.py): first the kinds
# before the cluster is ready, then those afterwards.
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
# Failure class by Ray's JobErrorType (ray/dashboard/modules/job/common.py). The types that are missing here mean only
# that the entrypoint failed.
RAY_ERRORS = {
    "RUNTIME_ENV_SETUP_FAILURE": "environment",
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": "ray_bring_up",
    "JOB_SUPERVISOR_ACTOR_START_FAILURE": "ray_bring_up",
    "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE": "ray_bring_up",
    "JOB_SUPERVISOR_ACTOR_DIED": "node_failure",
}


def diagnose(evidence: Evidence) -> Diagnosis:
    """Return the diagnosis of a failed attempt.

    ``next_action`` stays empty, because it depends on the task's earlier attempts
    (:func:`~llm_bridge.diagnosis.retry.decide`).
    """
    found = next((f for rule in RULES if (f := rule(evidence))), None) or _unknown(evidence)
    spent, lost = _gpu_hours(evidence)
    return titled(
        found.kind,
        " ".join(found.evidence.split("\n")),
        advice=found.advice,
        source=found.source,
        node=found.node or None,
        try_number=evidence.try_number,
        max_tries=evidence.max_tries,
        gpu_hours=spent,
        lost_gpu_hours=lost,
        step=evidence.step,
    )


def own_limit(evidence: Evidence) -> Finding | None:
    """Find an end by llm-bridge itself, or a job that Slurm has lost; the trigger's event reports both."""
    if evidence.timed_out:
        return Finding("task_limit", "the task's own time limit had passed", "Airflow")
    reason = evidence.reason
    # The reason file has it if another triggerer ended the job (HangMonitor).
    if reason and reason.kind == "hang":
        return Finding("hang", reason.reason, "llm-bridge", _only_node(evidence))
    if evidence.hung:
        return Finding("hang", evidence.notice, "llm-bridge", _only_node(evidence))
    if evidence.info is None and evidence.forgotten:
        return Finding("forgotten", evidence.notice, "Slurm")
    return None


def slurm_state(evidence: Evidence) -> Finding | None:
    """Find preemption, lost nodes, limits, memory and cancels in the job's state in Slurm, before any log."""
    accounting, info = evidence.accounting, evidence.info
    state = info.state.split(" ")[0].rstrip("+") if info else ""
    if info and info.phase in (Phase.WAITING, Phase.RUNNING):  # a Ray cluster whose job Slurm has requeued
        return _requeued(evidence)
    if accounting and accounting.oom_step:
        text = f"step {accounting.oom_step} OUT_OF_MEMORY, {_memory(evidence)}"
        return Finding("host_oom", text, "sacct", _only_node(evidence))
    kind = STATES.get(state)
    if kind is None or info is None:
        return None
    line = _line(evidence, "slurm_preempted", "slurm_time_limit", "slurm_node_cancel")
    if kind == "cancelled" and line:  # at some sites preemption cancels the job
        return Finding(
            line.signature.kind, line.text, line.source, _failed_node(evidence, line.signature.kind)
        )
    source = "sacct" if accounting else "squeue"
    if kind == "cancelled":
        return Finding(kind, f"{_cancelling_user(evidence)} cancelled Slurm job {evidence.job_id}", source)
    if kind == "time_limit" and (hang := _hang_until_time_limit(evidence)):
        return hang
    text = f"{state}{f', reason {info.reason}' if info.reason else ''}{f', on {info.nodes}' if info.nodes else ''}"
    if kind == "host_oom":
        text += f", {_memory(evidence)}"
    return Finding(kind, text, source, _failed_node(evidence, kind))


def own_reason(evidence: Evidence) -> Finding | None:
    """Use the job's own explanation (``reason.json``): its class if present, else the class that its text shows."""
    reason = evidence.reason
    if not reason:
        return None
    text, nodes, kind = reason.reason, ", ".join(reason.nodes) or None, reason.kind or ""
    # A node that the guard reports as lost may have died of a cause that the log shows; such a cause has precedence.
    if GUARD.get(kind) == "node_failure" and (root := root_cause(evidence)) and root.kind != "node_failure":
        return root
    matches = [m for m in in_lines([text]) if not m.signature.cascade]
    if matches and kind not in CLASSES:
        first = matches[0]
        return Finding(
            first.signature.kind, text, attempt_dir.REASON, nodes or first.node, first.signature.advice
        )
    if kind in CLASSES or kind in GUARD:
        return Finding(GUARD.get(kind, kind), text, attempt_dir.REASON, nodes)
    if not reason.retry:  # the log may show more than "its output is above"
        return root_cause(evidence) or Finding("bad_config", text, attempt_dir.REASON, nodes)
    if nodes:
        return Finding("bad_node", text, attempt_dir.REASON, nodes)
    return None


def ray_error(evidence: Evidence) -> Finding | None:
    """Use Ray's error type: Ray could not start the job, or the job's supervisor died with its node."""
    kind = RAY_ERRORS.get(evidence.ray_error_type or "")
    if kind is None:
        return None
    message = evidence.ray_message.strip()
    if kind == "node_failure" and (root := root_cause(evidence)):
        return root
    return Finding(
        kind, f"{evidence.ray_error_type}: {message[-400:]}".strip(": "), "Ray", _only_node(evidence)
    )


def root_cause(evidence: Evidence) -> Finding | None:
    """Find the earliest root cause in the log with the most direct evidence."""
    roots = [m for m in evidence.found if not m.signature.cascade]
    return _finding(evidence, min(roots, key=_position)) if roots else None


def full_disk(evidence: Evidence) -> Finding | None:
    """Find a workspace that refuses a small write at the time of the diagnosis."""
    if not evidence.full:
        return None
    return Finding(
        "disk_full", f"{evidence.full}: a write of 64 KiB into the workspace is refused", "the file system"
    )


def killed_for_memory(evidence: Evidence) -> Finding | None:
    """Find a job killed for its memory use; without memory cgroups Slurm reports it as FAILED 0:9 (measured, 22.05)."""
    accounting, info = evidence.accounting, evidence.info
    killed = info is not None and (info.signal == 9 or info.exit_code in (137, 9))
    # The derived exit code is the highest one of the job's steps.
    killed = killed or (accounting is not None and accounting.derived in ("0:9", "137:0"))
    if not killed or not accounting or not accounting.node_mem:
        return None
    if accounting.max_rss < MIN_FULL_MEMORY_SHARE * accounting.node_mem:
        return None
    return Finding("host_oom", f"killed by SIGKILL, {_memory(evidence)}", "sacct", _only_node(evidence))


def exit_code(evidence: Evidence) -> Finding | None:
    """Use the shell's exit codes 126 and 127, and Slurm's code for an output file that it could not write."""
    info = evidence.info
    code = evidence.driver_exit_code if evidence.is_ray else info.exit_code if info else 0
    # The highest exit code of the job's steps (srun); the batch script itself may exit with another one.
    derived = evidence.accounting.derived.partition(":")[0] if evidence.accounting else ""
    if code not in (126, 127) and derived in ("126", "127"):
        code = int(derived)
    if code in (126, 127):
        problem = "was not found" if code == 127 else "is not executable"
        text = f"exit code {code}: a command {problem}; {evidence.last_line}"
        return Finding("environment", text, "exit code of the job")
    if info and info.signal == 53:
        return Finding("missing_path", "0:53: Slurm could not write the job's output", "sacct")
    return None


def cascade(evidence: Evidence) -> Finding | None:
    """Find a consequence of an unknown cause, such as a lost connection or a killed process."""
    matches = [m for m in evidence.found if m.signature.cascade]
    if evidence.is_ray and not evidence.cluster_ended:
        # A Ray cluster that outlives the job always ends by scancel, which says nothing about the job.
        matches = [m for m in matches if m.id != "slurm_cancelled"]
    classified = [m for m in matches if m.signature.kind != "unknown"]
    best = classified or [m for m in matches if m.signature.advice] or matches
    return _finding(evidence, min(best, key=_position)) if best else None


def _unknown(evidence: Evidence) -> Finding:
    if evidence.reason and evidence.reason.reason:
        return Finding("unknown", evidence.reason.reason, attempt_dir.REASON)
    line = evidence.last_line or evidence.notice
    return Finding(
        "unknown", line or "the job left no output", "last line of the output" if evidence.last_line else ""
    )


RULES: tuple[Rule, ...] = (
    own_limit,
    slurm_state,
    own_reason,
    ray_error,
    root_cause,
    full_disk,
    killed_for_memory,
    exit_code,
    cascade,
)


def _finding(evidence: Evidence, match: SignatureMatch) -> Finding:
    signature = match.signature
    node = match.node or _failed_node(evidence, signature.kind)
    return Finding(signature.kind, match.text, match.source, node, signature.advice)


def _position(match: SignatureMatch) -> tuple[int, str, int]:
    """Return a sort key: by log, then by line; lines without a number are near the end of a long log."""
    return match.order, match.file, match.line if match.line is not None else 2**62


def _line(evidence: Evidence, *ids: str) -> SignatureMatch | None:
    return next((m for m in evidence.found if m.id in ids), None)


def _failed_node(evidence: Evidence, kind: str) -> str | None:
    """Return the node at fault: shown as down by Slurm, named by srun or the kernel, or the job's only node."""
    if kind not in ("node_failure", "gpu_hardware"):
        return None
    if evidence.down:
        return ", ".join(evidence.down)
    named = _line(evidence, "slurm_node", "xid", "ray_node_dead")
    return named.node if named and named.node else _only_node(evidence)


def _only_node(evidence: Evidence) -> str | None:
    """Return the job's node; None if the job has several or none."""
    names = evidence.info.nodes if evidence.info else ""
    return names if names and not any(sign in names for sign in ",[ ") else None


def _requeued(evidence: Evidence) -> Finding:
    earlier = evidence.accounting.earlier if evidence.accounting else ()
    last = earlier[-1].split(" ")[0] if earlier else ""
    kind = "node_failure" if last == "NODE_FAIL" else "preempted"
    cause = f" after {last}" if last else ""
    return Finding(kind, f"Slurm requeued job {evidence.job_id}{cause}", "squeue")


def _cancelling_user(evidence: Evidence) -> str:
    accounting = evidence.accounting
    if not accounting or not accounting.cancelled_by:
        return "an unknown user"
    uid = accounting.cancelled_by
    return f"{(evidence.users or {}).get(uid, 'user')} (uid {uid})"


def _hang_until_time_limit(evidence: Evidence) -> Finding | None:
    """Return a hang for a job that used almost no CPU time until its time limit and saved no new checkpoint."""
    accounting = evidence.accounting
    if not accounting or accounting.elapsed < MIN_HANG_SECONDS or not accounting.cpu_seconds:
        return None
    if accounting.cpu_seconds > MAX_HANG_CPU_SHARE * accounting.elapsed:
        return None
    if (evidence.step or 0) > (evidence.before or 0):
        return None
    text = (
        f"{accounting.cpu_seconds:.0f} s of CPU time in the {accounting.elapsed:.0f} s until the time limit, and no "
        "new checkpoint"
    )
    return Finding("hang", text, "sacct", _only_node(evidence))


def _memory(evidence: Evidence) -> str:
    accounting = evidence.accounting
    if not accounting or not accounting.max_rss:
        return "MaxRSS unknown"
    requested = f" of {accounting.node_mem / 2**30:.2f} GiB per node" if accounting.node_mem else ""
    return f"MaxRSS {accounting.max_rss / 2**30:.2f} GiB{requested}"


def _gpu_hours(evidence: Evidence) -> tuple[float | None, float | None]:
    """Return the GPU-hours of the attempt, and those since its last complete checkpoint (all if it made none)."""
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
