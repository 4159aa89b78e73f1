"""Wait for conditions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(look: Callable[[], Any], seconds: float = 60, every: float = 0.2, what: str = "") -> Any:
    """Poll ``look`` and return its first true result.

    Args:
        look: Returns the state.
        seconds: Timeout.
        every: Poll interval in seconds.
        what: Name of the awaited condition, for the error message.

    Raises:
        AssertionError: There is no true result within ``seconds``; the message names ``what``.
    """
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what or look}"
        time.sleep(every)
    return found
