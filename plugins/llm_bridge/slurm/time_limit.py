"""Parse and format time limits as Slurm writes them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta


def parse(text: str) -> timedelta:
    """Return the duration of a time limit.

    Args:
        text: Minutes, m:s, h:m:s, d-h, d-h:m or d-h:m:s (sbatch(1), --time).

    Raises:
        ValueError: It is none of these.
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
    """Return the sum of time limits in Slurm's format d-hh:mm:ss.

    Args:
        limits: Time limits; None for the site's default.

    Returns:
        The sum; None if one of the limits is the site's default, which is unknown here.
    """
    known = list(limits)
    if None in known:
        return None
    sum_ = sum((parse(limit) for limit in known if limit), timedelta())
    hours, seconds = divmod(sum_.seconds, 3600)
    return f"{sum_.days}-{hours:02}:{seconds // 60:02}:{seconds % 60:02}"


def warning_seconds(limit: str | None) -> int | None:
    """Return the time between Slurm's signal to a training job and its time limit, in seconds.

    The signal is sent early, because the training itself measures how long a step and a save take, and decides when to
    save. It must not be sent within the job's first minute: Slurm signals up to 60 s too early (sbatch(1), --signal),
    and the signal kills a script that has not set its trap yet.

    Args:
        limit: The job's time limit in Slurm's format; None for the site's default.

    Returns:
        Seconds; None for a job that is too short for a signal.
    """
    if limit is None:
        return 600
    seconds = int(parse(limit).total_seconds())
    return min(3600, seconds // 2) if seconds >= 180 else None
