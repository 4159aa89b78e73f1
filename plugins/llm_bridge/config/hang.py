"""Hang detection settings: limits, and the action when a job counts as hung."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_bridge.config.types import FrozenModel

Minutes = Annotated[float, Field(ge=0, le=100_000)]
OnHang = Literal["report", "retry"]

# Added to a training's limit until its first step: PPO needs 105 to 115 s to the first weight sync with a 1B model and
# its first step is 15 to 40 s slower (verl 0.9.1 on H100s); large models take longer to load and to compile.
START_MINUTES = 15.0


class Hang(FrozenModel):
    """Definition of a hang: no new output, a training's steps included, while the job runs and can be polled.

    Attributes:
        minutes: Time without output after which the job counts as hung.
        action: ``report`` only sends an alert; ``retry`` also ends the job, so that the task's next try starts.
        start_minutes: Added to ``minutes`` until the training's first step.
    """

    minutes: float = Field(gt=0)
    action: OnHang = "report"
    start_minutes: float = Field(default=0, ge=0)

    @classmethod
    def from_settings(
        cls, minutes: float | None, action: OnHang = "report", *, start_minutes: float = 0
    ) -> Hang | None:
        """Return the limits; None for ``minutes`` of None or 0, which mean never.

        Args:
            minutes: Time without output.
            action: ``report`` or ``retry``.
            start_minutes: Added until the training's first step.
        """
        return cls(minutes=minutes, action=action, start_minutes=start_minutes) if minutes else None
