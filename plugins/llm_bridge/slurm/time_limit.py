"""Slurm's way to write a time limit."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta


def parse(text: str) -> timedelta:
    """What a time limit means: minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s (sbatch(1), --time).

    :raises ValueError: it is none of these.
    """
    days, dash, rest = text.rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, minutes, seconds = 0, *(*numbers, 0)[:2]
    return timedelta(days=int(days or 0), hours=hours, minutes=minutes, seconds=seconds)


def total(limits: Iterable[str | None]) -> str | None:
    """The sum of time limits, as Slurm takes it; None if one of them is the site's default, which nobody knows here."""
    known = list(limits)
    if None in known:
        return None
    sum_ = sum((parse(limit) for limit in known if limit), timedelta())
    hours, seconds = divmod(sum_.seconds, 3600)
    return f"{sum_.days}-{hours:02}:{seconds // 60:02}:{seconds % 60:02}"


def warning(limit: str | None) -> int | None:
    """How many seconds before a training's end Slurm is to warn it; None for a job that is too short for that.

    Early, for the training itself knows how long it needs for a step and a save. But not within the job's first minute:
    Slurm warns up to 60 s too soon (sbatch(1), --signal), and a script that is not ready for the signal dies of it.

    :param limit: the job's time limit as Slurm takes it; None for the site's default.
    """
    if limit is None:
        return 600
    seconds = int(parse(limit).total_seconds())
    return min(3600, seconds // 2) if seconds >= 180 else None
