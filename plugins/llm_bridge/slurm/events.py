"""Define the event of a trigger that followed a Slurm job; Airflow stores it in its database as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Reason
from llm_bridge.slurm.status import JobInfo


class EndReason(StrEnum):
    """Reason why a trigger stopped following a job."""

    ENDED = "ended"  # the job has ended: by Slurm's state, or by its own outcome file
    READY = "ready"  # its ready file exists; the job runs on
    TIMEOUT = "timeout"  # the task's execution_timeout has passed
    HUNG = "hung"  # llm-bridge ended it because it hung
    FORGOTTEN = "forgotten"  # neither slurmctld nor accounting knows it, and it left no outcome file
    UNWATCHED = "unwatched"  # it cannot be polled any more: a defect, or a misconfigured connection


@dataclass(frozen=True)
class HangReport:
    """Report on a job that hangs.

    Attributes:
        duration: Time without output and without a new step, as text such as "30 min".
        nodes: Slurm's node list.
        step: The newest training step as a sentence; empty without one.
        stacks: Lines of the stack dumps of its processes.
        ended: True if llm-bridge ended the job because of it.
    """

    duration: str
    nodes: str = ""
    step: str = ""
    stacks: tuple[str, ...] = ()
    ended: bool = False

    @property
    def notice(self) -> str:
        """Evidence line of the diagnosis."""
        after = f", after {self.step}" if self.step else ""
        return f"hang: no output and no new step for {self.duration}{after}"

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> HangReport | None:
        """Return the report in a JSON object; None for None."""
        return cls(**{**values, "stacks": tuple(values["stacks"])}) if values else None


@dataclass(frozen=True)
class SlurmJobEvent:
    """Event of a trigger that followed one Slurm job.

    Attributes:
        job_id: The job.
        cluster: Name of the cluster file.
        directory: The attempt's directory on the cluster.
        end: Reason why following ended.
        info: The job's last known state; None if Slurm did not report one.
        notice: One line about an end that ``info`` does not explain.
        ready_file: Name of the file that READY waits for; None for a job without one.
        cancelled: After TIMEOUT, true if the job was cancelled.
        result: Content of the job's result file; of the ready file after READY.
        reason: The job's own explanation of its failure.
        last_lines: Last lines of its output.
        hang: Report on the hang, if the job hung.
    """

    job_id: str
    cluster: str
    directory: str
    end: EndReason
    info: JobInfo | None = None
    notice: str = ""
    ready_file: str | None = None
    cancelled: bool = False
    result: Any = None
    reason: Reason | None = None
    last_lines: tuple[str, ...] = ()
    hang: HangReport | None = None

    @property
    def succeeded(self) -> bool:
        """True if the job is ready or, for a job without a ready file, if it ended successfully."""
        if self.end is EndReason.READY:
            return True
        return self.ready_file is None and self.info is not None and self.info.meaning.good

    def to_json(self) -> dict[str, Any]:
        """Return the event as JSON values."""
        reason = attempt_dir.as_json(self.reason) if self.reason else None
        return {**asdict(self), "end": self.end.value, "last_lines": list(self.last_lines), "reason": reason}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SlurmJobEvent:
        """Return the event from the values of :meth:`to_json`."""
        return cls(
            **{
                **values,
                "end": EndReason(values["end"]),
                "info": JobInfo(**values["info"]) if values["info"] else None,
                "reason": attempt_dir.parse(Reason, values["reason"]),
                "last_lines": tuple(values["last_lines"]),
                "hang": HangReport.from_json(values["hang"]),
            }
        )
