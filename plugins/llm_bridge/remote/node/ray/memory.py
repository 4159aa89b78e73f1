"""Count the processes of this job that the kernel's OOM killer has ended on this node."""

from __future__ import annotations

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# Files with the counter `oom_kill`: of cgroup v2, and of v1's memory controller.
COUNTERS = ("memory.events", "memory.oom_control")


def kills(own: str, root: Path = CGROUPS) -> int:
    """Return the number of processes of this job's cgroup that were OOM-killed; 0 where no cgroup limits memory.

    Args:
        own: Content of /proc/self/cgroup: lines `number:controllers:path` (cgroups(7)).
        root: Mount point of the cgroups.
    """
    found = 0
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            found = max(found, _counter(root / controllers / path.lstrip("/")))
    return found


def hint(own: str | None = None) -> str:
    """Return the end of a sentence about OOM kills on this node; empty if there were none.

    Args:
        own: Content of /proc/self/cgroup; read from there if None.
    """
    try:
        number = kills(Path("/proc/self/cgroup").read_text() if own is None else own)
    except (OSError, ValueError):
        return ""
    if not number:
        return ""
    return f"; the kernel killed {number} process(es) of the job here for lack of memory: request more `mem`"


def _counter(folder: Path) -> int:
    for name in COUNTERS:
        try:
            words = (folder / name).read_text().split()
        except OSError:
            continue
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0
    return 0
