"""When a job counts as hung, and what is done then."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_bridge.config.values import Strict

Minutes = Annotated[float, Field(ge=0, le=100_000)]
OnHang = Literal["report", "retry"]

# What a training may take beyond its limit until its first step: PPO needs 105 to 115 s to the first weight sync with a
# 1B model and its first step is 15 to 40 s slower (verl 0.9.1 on H100s); large models load, and compile, for longer.
START_MINUTES = 15.0


class Hang(Strict):
    """No new output, a training's steps included, while the job runs and can be seen.

    :param minutes: without output.
    :param action: ``report`` only tells; ``retry`` also ends the job, so that the task's next try begins.
    :param start_minutes: more, until the first step of a training is seen.
    """

    minutes: float = Field(gt=0)
    action: OnHang = "report"
    start_minutes: float = Field(default=0, ge=0)

    @classmethod
    def of(cls, minutes: float | None, action: OnHang = "report", *, start_minutes: float = 0) -> Hang | None:
        """From settings in which neither minutes nor 0 of them mean never."""
        return cls(minutes=minutes, action=action, start_minutes=start_minutes) if minutes else None
