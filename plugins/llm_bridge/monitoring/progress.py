"""Progress of a training: condense verl's line for each step, which has some eighty numbers, into one for people."""

from __future__ import annotations

import re
from collections import deque

from llm_bridge.notifications.message import duration

# verl's console logger: "step:12 - actor/pg_loss:0.01 - critic/score/mean:0.3 ..." (utils/tracking.py), after whatever
# a progress bar has left on the line.
_STEP = re.compile(r"(?<![\w/-])step:(\d+) - (.+)")
_NUMBER = re.compile(r"([\w/@().-]+):(?:np\.\w+\()?(-?\d[\d.]*(?:e[+-]?\d+)?)")
# sft_trainer.py and ray_trainer.py print it once, before the first step.
_TOTAL = re.compile(r"\bTotal (?:training )?steps: (\d+)")
_BAR = re.compile(r"([\d.]+)(s/it|it/s)")
# Metrics to show, and the names that each may have in verl: the first that is present counts.
METRICS = {
    "reward": ("critic/score/mean", "critic/rewards/mean"),
    "loss": ("train/loss", "actor/pg_loss"),
    "validation loss": ("val/loss",),
}
# Followed by the data set's name, and the number of answers drawn: mean@1.
VALIDATION_PREFIX = "val-core/"
STEP_SECONDS_METRICS = ("timing_s/step", "perf/time_per_step")
STEPS_IN_MEAN = 10


class Progress:
    """Reader of one training's output, line by line.

    Attributes:
        latest: ``step`` and, where known, ``total``, ``step_seconds`` and ``left_seconds`` of the newest step.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self._total = 0
        self._seconds: deque[float] = deque(maxlen=STEPS_IN_MEAN)

    def read(self, line: str) -> str | None:
        """Return a summary if the line reports a step, else None.

        The time left is estimated from the mean of the last STEPS_IN_MEAN steps.
        """
        if found := _TOTAL.search(line):
            self._total = int(found.group(1))
            return None
        if not (found := _STEP.search(line)):
            return None
        step, values = int(found.group(1)), dict(_NUMBER.findall(found.group(2)))
        parts = [f"step {step} of {self._total}" if self._total >= step else f"step {step}"]
        self.latest = {"step": step, **({"total": self._total} if self._total >= step else {})}
        for name, keys in METRICS.items():
            if value := next((values[key] for key in keys if key in values), None):
                parts.append(f"{name} {float(value):.4g}")
        if value := next((values[key] for key in values if key.startswith(VALIDATION_PREFIX)), None):
            parts.append(f"validation reward {float(value):.4g}")
        if seconds := self._step_seconds(line[: found.start()], values):
            self._seconds.append(seconds)
            mean = sum(self._seconds) / len(self._seconds)
            parts.append(f"{seconds:.1f} s/step")
            self.latest["step_seconds"] = round(seconds, 2)
            if self._total > step:
                self.latest["left_seconds"] = round(mean * (self._total - step), 1)
                parts.append(f"about {duration(mean * (self._total - step))} left")
        return ", ".join(parts) if len(parts) > 1 else None

    @staticmethod
    def _step_seconds(before: str, values: dict[str, str]) -> float | None:
        """Return the step's duration: verl's measurement, else that of the progress bar in ``before``."""
        if value := next((values[key] for key in STEP_SECONDS_METRICS if key in values), None):
            return float(value)
        if bars := _BAR.findall(before):
            number, unit = bars[-1]
            return float(number) if unit == "s/it" else 1 / float(number) if float(number) else None
        return None
