"""Define the event that a trigger fires for a Ray job; it is stored as JSON in Airflow's database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from llm_bridge.ray.client import RayJobDetails, RayTarget
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Outcome, Reason
from llm_bridge.slurm.events import HangReport
from llm_bridge.slurm.status import JobInfo


class RayEndReason(StrEnum):
    """Reason why a trigger stopped following a Ray job. The first three are Ray's own final states."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    ALLOCATION_ENDED = "ALLOCATION_ENDED"  # the Slurm job of its cluster ended, or was requeued
    CANNOT_START = "CANNOT_START"  # no node of its cluster has the resources that it requests
    LOST = "LOST"  # Ray has no such job
    REFUSED = "REFUSED"  # Ray refuses the token or the request
    UNREACHABLE = "UNREACHABLE"  # the dashboard did not answer within the timeout
    TIMEOUT = "TIMEOUT"  # the task's own time limit has passed


@dataclass(frozen=True)
class RayJobEnd:
    """State of a Ray job when its follower stopped.

    Attributes:
        end: Reason why the follower stopped.
        notice: One line that explains ``end`` where the other fields do not.
        job: Details that Ray reports.
        info: State of the cluster's Slurm job, if that has ended.
        forgotten: True if Slurm has lost the cluster's Slurm job.
        cause: Details from Slurm beyond that state: the user that cancelled it, nodes that are down; may be empty.
        outcome: Outcome file of the job's wrapper.
        result: Content of the job's result file.
        reason: The job's own explanation of its failure, or the cluster's.
        last_lines: Last lines of the driver's output.
        hang: Report of the hang monitor, if the job hung at its end.
    """

    end: RayEndReason
    notice: str = ""
    job: RayJobDetails | None = None
    info: JobInfo | None = None
    forgotten: bool = False
    cause: str = ""
    outcome: Outcome | None = None
    result: Any = None
    reason: Reason | None = None
    last_lines: tuple[str, ...] = ()
    hang: HangReport | None = None


@dataclass(frozen=True)
class RayJobEvent(RayJobEnd):
    """Event of one Ray job: :class:`RayJobEnd`, and the job that it is about.

    Attributes:
        target: Ray cluster that the job ran on.
        submission_id: Ray's id of the job.
        directory: The submission's directory on the cluster; None if the Ray cluster is no Slurm job of llm-bridge.
        own_cluster: True if the task had started the Ray cluster itself; it has then ended with the job.
    """

    target: RayTarget = field(kw_only=True)
    submission_id: str = field(kw_only=True)
    directory: str | None = field(default=None, kw_only=True)
    own_cluster: bool = field(default=False, kw_only=True)

    @property
    def lost_cluster(self) -> bool:
        """True if the job ended because the cluster's Slurm job ended or was requeued."""
        return self.end is RayEndReason.ALLOCATION_ENDED

    def to_json(self) -> dict[str, Any]:
        """Return the event as JSON values."""
        return {
            **asdict(self),
            "end": self.end.value,
            "last_lines": list(self.last_lines),
            "outcome": attempt_dir.as_json(self.outcome) if self.outcome else None,
            "reason": attempt_dir.as_json(self.reason) if self.reason else None,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RayJobEvent:
        """Return the event from the values that :meth:`to_json` made."""
        return cls(
            **{
                **values,
                "end": RayEndReason(values["end"]),
                "target": RayTarget(**values["target"]),
                "job": RayJobDetails(**values["job"]) if values["job"] else None,
                "info": JobInfo(**values["info"]) if values["info"] else None,
                "outcome": attempt_dir.parse(Outcome, values["outcome"]),
                "reason": attempt_dir.parse(Reason, values["reason"]),
                "last_lines": tuple(values["last_lines"]),
                "hang": HangReport.from_json(values["hang"]),
            }
        )
