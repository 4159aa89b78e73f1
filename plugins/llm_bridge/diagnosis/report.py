"""Define the diagnosis of a failed attempt, as text for users and as JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from llm_bridge.diagnosis.classes import class_of


@dataclass(frozen=True)
class Diagnosis:
    """Cause of a failed attempt and the action that follows. It holds no secret: XCom, alerts and logs contain it.

    Attributes:
        kind: Failure class, a key of :data:`~llm_bridge.diagnosis.classes.CLASSES`.
        title: Title of the class.
        evidence: Line that shows the cause.
        node: Node at fault, or several joined with ", "; None if unknown.
        advice: Steps for the user, with the settings to change.
        next_action: Action that follows, with its reason.
        source: Source of the evidence: ``FILE:LINE`` on the cluster, "sacct", "reason.json" or "Ray".
        try_number: Number of the task's try, from 1 on.
        max_tries: Number of tries that the task has; None if unknown.
        gpu_hours: GPU-hours of this attempt.
        lost_gpu_hours: Part of ``gpu_hours`` after its last complete checkpoint.
        step: Step of the newest complete checkpoint.
    """

    kind: str
    title: str
    evidence: str
    node: str | None = None
    advice: str = ""
    next_action: str = ""
    source: str = ""
    try_number: int = 1
    max_tries: int | None = None
    gpu_hours: float | None = None
    lost_gpu_hours: float | None = None
    step: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON values, for the XCom ``diagnosis``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Diagnosis:
        """Return the diagnosis from the dict of :meth:`as_dict`; keys that a newer version has added are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @property
    def nodes(self) -> tuple[str, ...]:
        """Nodes at fault."""
        return tuple(self.node.split(", ")) if self.node else ()

    def text(self) -> str:
        """Return several lines for the exception's message and the log."""
        where = f" ({self.source})" if self.source else ""
        lines = [f"Cause: {self.kind} ({self.title})", f"Evidence: {self.evidence}{where}"]
        if self.node:
            lines.append(f"Node: {self.node}")
        if self.step is not None:
            lines.append(f"Newest complete checkpoint: step {self.step}")
        if self.gpu_hours:
            lost = ""
            if self.lost_gpu_hours is not None:
                lost = f", of which {self.lost_gpu_hours:.2f} are not saved in a checkpoint"
            lines.append(f"GPU-hours of this attempt: {self.gpu_hours:.2f}{lost}")
        if self.advice:
            lines.append(f"What to do: {self.advice}")
        if self.next_action:
            lines.append(f"Next: {self.next_action}")
        return "\n".join(lines)


def titled(kind: str, evidence: str, *, advice: str = "", **more: Any) -> Diagnosis:
    """Return a diagnosis with the title of its class.

    Args:
        kind: Name of the class.
        evidence: Line that shows the cause.
        advice: Advice in place of that of the class.
        **more: Further fields of :class:`Diagnosis`.
    """
    failure = class_of(kind)
    return Diagnosis(kind, failure.title, evidence, advice=advice or failure.advice, **more)
