"""What went wrong, as people and programs read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from llm_bridge.failures.kinds import kind_of


@dataclass(frozen=True)
class Diagnosis:
    """Why an attempt failed and what follows. Holds no secret: it goes into XCom, alerts and logs.

    :param kind: the class, a name of :data:`~llm_bridge.failures.kinds.KINDS`.
    :param title: a few words for people.
    :param evidence: the one line that shows it.
    :param node: the node, or nodes with ", " between them; None where none is known.
    :param advice: what the user can do, and which knob to turn.
    :param next: what happens next.
    :param source: where the evidence is: ``FILE:LINE`` on the cluster, "sacct", "reason.json", "Ray".
    :param attempt: the try of the task. :param of: how many there are; None where unknown.
    :param gpu_hours: spent by this attempt. :param lost_gpu_hours: of them, since its last complete checkpoint.
    :param step: the newest complete checkpoint's.
    """

    kind: str
    title: str
    evidence: str
    node: str | None = None
    advice: str = ""
    next: str = ""
    source: str = ""
    attempt: int = 1
    of: int | None = None
    gpu_hours: float | None = None
    lost_gpu_hours: float | None = None
    step: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values only: the XCom ``diagnosis``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Diagnosis:
        """Of :meth:`as_dict`; keys that a newer version has added are passed over."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node or nodes, one by one."""
        return tuple(self.node.split(", ")) if self.node else ()

    def text(self) -> str:
        """Several lines: for the exception's message and the log."""
        where = f" ({self.source})" if self.source else ""
        lines = [f"Cause: {self.kind} ({self.title})", f"Evidence: {self.evidence}{where}"]
        if self.node:
            lines.append(f"Node: {self.node}")
        if self.step is not None:
            lines.append(f"Newest complete checkpoint: step {self.step}")
        if self.gpu_hours:
            lost = f", of them {self.lost_gpu_hours:.2f} since it" if self.lost_gpu_hours is not None else ""
            lines.append(f"Spent by this attempt: {self.gpu_hours:.2f} GPU-hours{lost}")
        if self.advice:
            lines.append(f"What to do: {self.advice}")
        if self.next:
            lines.append(f"Next: {self.next}")
        return "\n".join(lines)


def titled(kind: str, evidence: str, *, advice: str = "", **more: Any) -> Diagnosis:
    """A diagnosis with its class's title and, unless there is a better one, its advice."""
    known = kind_of(kind)
    return Diagnosis(kind, known.title, evidence, advice=advice or known.advice, **more)
