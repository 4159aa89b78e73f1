"""Save the last step before the job ends, with verl 0.9.1's trainers, which only read ``save_freq``.

Slurm signals the batch script before the time limit (``--signal``), and the batch script writes the end of the job into
a file. From then on the trainer checks here after each step if the next step would end too late to be saved.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

# Environment variable with the file's path, for all processes of the job (batch.sh.j2).
DEADLINE_VARIABLE = "LLM_BRIDGE_ENDS_SOON"
# Expected duration of a save, until this process has saved once.
DEFAULT_SAVE_SECONDS = 300.0
# Reserve: a save is slower than the last one when all jobs of a site save before a maintenance.
SAFETY_MARGIN_SECONDS = 30.0


class DeadlineSaver:
    """Decide once a step, in one process of a training, if this step is the last that can be saved in time.

    Args:
        notice: The file with the job's end in epoch seconds; it does not exist until the end is near.
        clock: Returns the current time in epoch seconds.
    """

    def __init__(self, notice: Path, clock: Callable[[], float] = time.time) -> None:
        self._notice = notice
        self._clock = clock
        self._since: float | None = None  # start of the step
        self._step_seconds = 0.0  # the longest step, with its validation
        self._save_seconds: float | None = None  # the longest save
        self._done = False

    def due(self, step: int) -> bool:
        """Return True if ``step``, which has just been trained, must be saved now. Call this once a step."""
        now = self._clock()
        if self._since is not None:
            self._step_seconds = max(self._step_seconds, now - self._since)
        self._since = now
        deadline = self._deadline()
        if deadline is None or self._done:
            return False
        left, save = deadline - now, self._save_seconds
        max_save = DEFAULT_SAVE_SECONDS if save is None else save
        if left > self._step_seconds + 1.25 * max_save + SAFETY_MARGIN_SECONDS:
            return False  # the next step can still be saved in time
        if left < (save or 0.0):
            return False  # a partial checkpoint is useless
        # The duration of a save is known only after the first one: then there may be time for a later one.
        self._done = save is not None
        print(f"[llm-bridge] the job ends in {left:.0f} s: step {step} is saved now", flush=True)
        return True

    def saved(self) -> None:
        """Record that a checkpoint is complete. Call this after each save, also after verl's regular ones."""
        now = self._clock()
        if self._since is not None:
            self._save_seconds = max(self._save_seconds or 0.0, now - self._since)
        self._since = now

    def _deadline(self) -> float | None:
        try:
            return float(self._notice.read_text())
        except (OSError, ValueError):
            return None


class SaveFreq(int):
    """A ``save_freq`` for verl that divides its own multiples, and each step for which ``due`` returns True.

    verl computes ``step % save_freq`` once a step, right before it saves (``sft_trainer.py`` and
    ``ppo/v1/trainer_base.py``: fit).

    Args:
        every: verl's own number of steps between saves; zero or less saves no other step.
        due: Receives the step.
    """

    _due: Callable[[int], bool]

    def __new__(cls, every: int, due: Callable[[int], bool]) -> SaveFreq:
        """Return ``every`` as an integer that is bound to ``due``."""
        self = super().__new__(cls, every if every > 0 else sys.maxsize)
        self._due = due
        return self

    def __rmod__(self, step: int) -> int:
        return 0 if self._due(step) else step % int(self)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)  # other processes get the number only
