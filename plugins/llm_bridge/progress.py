"""How far a training is: verl's line for each step, which has some eighty numbers, as one that people read."""

from __future__ import annotations

import re
from collections import deque

# verl's console logger: "step:12 - actor/pg_loss:0.01 - critic/score/mean:0.3 ..." (utils/tracking.py), with whatever a
# progress bar has left before it on the line.
_STEP = re.compile(r"(?<![\w/-])step:(\d+) - (.+)")
_NUMBER = re.compile(r"([\w/@().-]+):(?:np\.\w+\()?(-?\d[\d.]*(?:e[+-]?\d+)?)")
# sft_trainer.py and ray_trainer.py say it once, before the first step.
_TOTAL = re.compile(r"\bTotal (?:training )?steps: (\d+)")
_BAR = re.compile(r"([\d.]+)(s/it|it/s)")
# What is shown, and the names that it has in verl: the first one that is there.
SHOWN = {
    "reward": ("critic/score/mean", "critic/rewards/mean"),
    "loss": ("train/loss", "actor/pg_loss"),
    "validation loss": ("val/loss",),
}
VALIDATION = "val-core/"  # and the data set's name, and how many answers were drawn: mean@1
SECONDS = ("timing_s/step", "perf/time_per_step")
STEPS_IN_MEAN = 10


class Progress:
    """Reads the lines of one training's output."""

    def __init__(self) -> None:
        self._total = 0
        self._seconds: deque[float] = deque(maxlen=STEPS_IN_MEAN)

    def read(self, line: str) -> str | None:
        """A sentence, if the line is a step's; the time left is a mean over the last steps."""
        if found := _TOTAL.search(line):
            self._total = int(found.group(1))
            return None
        if not (found := _STEP.search(line)):
            return None
        step, values = int(found.group(1)), dict(_NUMBER.findall(found.group(2)))
        parts = [f"step {step} of {self._total}" if self._total >= step else f"step {step}"]
        for name, keys in SHOWN.items():
            if value := next((values[key] for key in keys if key in values), None):
                parts.append(f"{name} {float(value):.4g}")
        if value := next((values[key] for key in values if key.startswith(VALIDATION)), None):
            parts.append(f"validation reward {float(value):.4g}")
        if seconds := self._seconds_of(line[: found.start()], values):
            self._seconds.append(seconds)
            mean = sum(self._seconds) / len(self._seconds)
            parts.append(f"{seconds:.1f} s/step")
            if self._total > step:
                parts.append(f"about {duration(mean * (self._total - step))} left")
        return ", ".join(parts) if len(parts) > 1 else None

    @staticmethod
    def _seconds_of(before: str, values: dict[str, str]) -> float | None:
        """What verl has measured, or its progress bar."""
        if value := next((values[key] for key in SECONDS if key in values), None):
            return float(value)
        if bars := _BAR.findall(before):
            number, unit = bars[-1]
            return float(number) if unit == "s/it" else 1 / float(number) if float(number) else None
        return None


def duration(seconds: float) -> str:
    """``90`` -> ``2 min``, ``9000`` -> ``2 h 30 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    days, hours, rest = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {rest} min" if hours else f"{rest} min"
