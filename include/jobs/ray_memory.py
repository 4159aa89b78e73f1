"""Whether the kernel has killed processes of this job here because its memory was used up."""

from __future__ import annotations

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# Where the counter `oom_kill` is: cgroup v2, and v1's memory controller.
COUNTERS = ("memory.events", "memory.oom_control")


def kills(own: str, root: Path = CGROUPS) -> int:
    """How many processes of this job's cgroup were killed for memory; 0 where no cgroup limits it.

    Args:
        own: content of /proc/self/cgroup: lines `number:controllers:path` (cgroups(7)).
        root: where cgroups are mounted.
    """
    found = 0
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            found = max(found, _counter(root / controllers / path.lstrip("/")))
    return found


def hint(own: str | None = None) -> str:
    """What to tell of it, for the end of a sentence; empty where nothing was killed for memory."""
    try:
        number = kills(Path("/proc/self/cgroup").read_text() if own is None else own)
    except (OSError, ValueError):
        return ""
    if not number:
        return ""
    return f"; the kernel killed {number} process(es) of the job here for memory: ask for more `mem`"


def _counter(folder: Path) -> int:
    for name in COUNTERS:
        try:
            words = (folder / name).read_text().split()
        except OSError:
            continue
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0
    return 0
