"""Define the input that a trigger passes to its follower of a Ray job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from airflow.triggers.base import BaseTrigger

from llm_bridge.config.hang import Hang
from llm_bridge.ray.client import RayTarget


@dataclass(frozen=True)
class RayFollowContext:
    """Input of both followers.

    Attributes:
        trigger: Trigger whose log gets the output.
        target: Ray cluster that the job runs on.
        submission_id: Ray's id of the job.
        poll_seconds: Seconds between two requests to the dashboard.
        pending_until: Epoch seconds after which a job that can never start is reported; None for never.
        hang: When the job counts as hung; None for never.
        end_hung_job: Stops a job that counts as hung.
    """

    trigger: BaseTrigger
    target: RayTarget
    submission_id: str
    poll_seconds: float
    pending_until: float | None
    hang: Hang | None
    end_hung_job: Callable[[], Awaitable[None]]
