"""Limit the output of one job that is written to Airflow's log: a burst, then a low rate."""

from __future__ import annotations

import time

# Airflow keeps task logs as files with a JSON object per line, and its UI loads them whole, so a burst of 100 MB must
# not be written there. A training run of a week at one line of 1 KB every 3 s is 200 MB and stays below the rate.
BURST_BYTES = 4 * 1024 * 1024
BYTES_PER_SECOND = 16 * 1024
# Maximum output beyond the rate that is delayed; above it, output is skipped.
MAX_BACKLOG_BYTES = 1024 * 1024
# Maximum bytes per poll and job.
MAX_POLL_BYTES = 256 * 1024
# Bytes at the end of a job's output that are never skipped.
LAST_BYTES = 64 * 1024


class OutputRateLimiter:
    """Token bucket of output bytes for one job."""

    def __init__(self) -> None:
        self._tokens = float(BURST_BYTES)
        self._at = time.monotonic()

    def limits(self, final: bool = False) -> tuple[int, int]:
        """Return the limits for the next read.

        Args:
            final: The job has ended; nothing is delayed any more.

        Returns:
            Maximum bytes to read, and maximum backlog in bytes before output is skipped.
        """
        now = time.monotonic()
        self._tokens = min(BURST_BYTES, self._tokens + (now - self._at) * BYTES_PER_SECOND)
        self._at = now
        tokens = max(0, int(self._tokens))
        if final:
            return MAX_POLL_BYTES, tokens + LAST_BYTES
        return min(MAX_POLL_BYTES, tokens), tokens + MAX_BACKLOG_BYTES

    def consume(self, size: int) -> None:
        """Remove ``size`` bytes that were read from the bucket."""
        self._tokens -= size
