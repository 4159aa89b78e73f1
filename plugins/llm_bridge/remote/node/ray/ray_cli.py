"""Load Ray's command line, and run it when standard input ends: ``python node.pyz ray-cli start OPTIONS...``.

This way a worker loads Ray while the head still starts, and the node agent releases it when the head is up. Modules
that only other commands than `ray start` need are left out: loading them takes three quarters of the time (1.35 s of
CPU instead of 0.33 s).

`ray start` gives a raylet 30 s to register (ray 2.60, _private/node.py, a constant), which the agents' imports from a
cold or busy file system exceed. Here it waits as long as the raylet lives: the head guard's `ready_minutes` is the
limit.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Ray's command line works without each of these, as where it is not installed (ray/scripts/scripts.py, at its end).
NOT_NEEDED = ("ray.serve", "ray.util.state.state_cli", "ray.dashboard.modules.job.cli")
REGISTRATION_POLL_INTERVAL_SECONDS = 0.5


class RayletEnded(Exception):
    """The raylet ended before it had registered; its own logs, raylet.out and raylet.err, have the reason."""


def raylet_ended() -> bool:
    """Return True if a raylet that this process started has ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # proc(5): "pid (name) state ppid"
            head, _, tail = stat.read_text(errors="replace").rpartition(")")
            state, parent = tail.split()[:2]
            if head.endswith("(raylet") and state == "Z" and int(parent) == os.getpid():
                return True
    return False


def until_registered(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Return Ray's function that looks a node up in the GCS, made to wait until the node has registered.

    Args:
        get_node: Raises RuntimeError while the GCS does not know the node.
    """

    def wait(*args: Any, **kwargs: Any) -> Any:
        while True:
            try:
                return get_node(*args, **kwargs)
            except RuntimeError:
                if raylet_ended():
                    raise RayletEnded(
                        "the raylet ended during startup, see raylet.out and raylet.err"
                    ) from None
                time.sleep(REGISTRATION_POLL_INTERVAL_SECONDS)

    return wait


def main() -> None:
    """Run the program; its arguments are those of the command `ray`."""
    for name in NOT_NEEDED:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it fails (docs.python.org, "The module cache")
    from ray._private import services
    from ray.scripts.scripts import main as ray

    services.get_node = until_registered(services.get_node)
    sys.stdin.read()
    ray()
