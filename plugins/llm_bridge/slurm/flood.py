"""How much of one job's output goes into Airflow: a burst, then a trickle."""

from __future__ import annotations

import time

# Airflow keeps task logs as files with a JSON object a line, and its UI shows them whole: a job that prints 100 MB
# must not end up there. A training run of a week at one line of 1 KB every 3 s is 200 MB and passes.
BURST_BYTES = 4 * 1024 * 1024
BYTES_A_SECOND = 16 * 1024
# So much may wait its turn beyond that before it is skipped.
PATIENCE_BYTES = 1024 * 1024
# One look brings at most so much of one job.
LOOK_BYTES = 256 * 1024
# The end of a job's output is shown in any case.
LAST_BYTES = 64 * 1024


class Flood:
    """A token bucket of bytes."""

    def __init__(self) -> None:
        self._tokens = float(BURST_BYTES)
        self._at = time.monotonic()

    def allowed(self, final: bool = False) -> dict[str, int]:
        """What to ask for now: ``max_bytes`` at once, and ``room``, the most that may wait before some is skipped.

        :param final: the job has ended; nothing is waited for any more.
        """
        now = time.monotonic()
        self._tokens = min(BURST_BYTES, self._tokens + (now - self._at) * BYTES_A_SECOND)
        self._at = now
        tokens = max(0, int(self._tokens))
        if final:
            return {"max_bytes": LOOK_BYTES, "room": tokens + LAST_BYTES}
        return {"max_bytes": min(LOOK_BYTES, tokens), "room": tokens + PATIENCE_BYTES}

    def took(self, size: int) -> None:
        """``size`` bytes have come."""
        self._tokens -= size
