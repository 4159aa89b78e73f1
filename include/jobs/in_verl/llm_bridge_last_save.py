"""The last save before the job ends, for verl 0.9.1's trainers, which look at nothing but ``save_freq``.

The batch script is warned by Slurm (``--signal``) and writes the moment of the job's end into a file. From then on the
trainer asks here after each step whether the next one would be too late to be saved.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Callable, Optional

# Names the file, for all processes of the job (batch.sh.j2).
VARIABLE = "LLM_BRIDGE_ENDS_SOON"
UNKNOWN_SAVE_SECONDS = 300.0  # until this process has saved once
# A save is not as fast as the last one when all jobs of a site save before a maintenance.
SPARE_SECONDS = 30.0


class LastSave:
    """Decides once a step, in one process of a training, whether this step is the last that can be saved in time.

    :param notice: the file with the job's end in epoch seconds; there is none until the end is near.
    """

    def __init__(self, notice: Path, clock: Callable[[], float] = time.time) -> None:
        self._notice = notice
        self._clock = clock
        self._since: Optional[float] = None  # when the step began
        self._step_seconds = 0.0  # the longest, with its validation
        self._save_seconds: Optional[float] = None  # the longest
        self._done = False

    def due(self, step: int) -> bool:
        """Whether ``step``, which has just been trained, is to be saved now. To be called once a step."""
        now = self._clock()
        if self._since is not None:
            self._step_seconds = max(self._step_seconds, now - self._since)
        self._since = now
        ends = self._ends()
        if ends is None or self._done:
            return False
        left, save = ends - now, self._save_seconds
        most = UNKNOWN_SAVE_SECONDS if save is None else save
        if left > self._step_seconds + 1.25 * most + SPARE_SECONDS:
            return False  # the next step will still be in time
        if left < (save or 0.0):
            return False  # half a checkpoint is of no use
        # How long a save takes is known only after the first: then there may be time for another one later.
        self._done = save is not None
        print(f"[llm-bridge] the job ends in {left:.0f} s: step {step} is saved now", flush=True)
        return True

    def saved(self) -> None:
        """A checkpoint is complete, whatever it was made for. To be called after each save."""
        now = self._clock()
        if self._since is not None:
            self._save_seconds = max(self._save_seconds or 0.0, now - self._since)
        self._since = now

    def _ends(self) -> Optional[float]:
        try:
            return float(self._notice.read_text())
        except (OSError, ValueError):
            return None


class SaveFreq(int):
    """verl's ``save_freq``, which besides its multiples divides each step that ``due`` wants to be saved.

    verl computes ``step % save_freq`` once a step, right before it saves (``sft_trainer.py`` and
    ``ppo/v1/trainer_base.py``: fit).

    :param every: verl's own number; zero or less saves no other step.
    :param due: gets the step.
    """

    def __new__(cls, every: int, due: Callable[[int], bool]) -> SaveFreq:
        self = super().__new__(cls, every if every > 0 else sys.maxsize)
        self._due = due  # type: ignore[attr-defined]
        return self

    def __rmod__(self, step: int) -> int:
        return 0 if self._due(step) else step % int(self)  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)  # other processes get the number alone
