"""Describe the login node: user, shell, cleared variables, and candidates for the settings of a cluster file.

Takes a DescribeRequest and returns a DescribeAnswer (``remote/messages.py``). Nothing is written.
"""

import glob
import os
import pwd
import socket
from typing import Any, Dict, List, Optional

from llm_bridge.remote.messages import DescribeAnswer, DescribeRequest, Folder, decode, encode

# Set by templates/login_command.sh.
CLEARED = "LLM_BRIDGE_CLEARED"
# Beginnings of the names of interfaces that lead to no other host.
NO_NETWORK = ("lo", "veth", "br-", "docker", "virbr", "cni", "flannel", "tunl")


def interfaces() -> List[str]:
    """Return the network interfaces, without the loopback and those of containers."""
    try:
        names = [name for _, name in socket.if_nameindex()]
    except OSError:
        return []
    return [name for name in names if not name.startswith(NO_NETWORK)]


def folder(path: str, mounts: Dict[str, str]) -> Optional[Folder]:
    """Return a folder of the user's; None if it does not exist or may not be written.

    Args:
        path: Its path, perhaps with variables and "~".
        mounts: Mount point -> type of the file system.
    """
    full = os.path.expanduser(os.path.expandvars(path))
    if "$" in full or not os.path.isdir(full) or not os.access(full, os.W_OK | os.X_OK):
        return None
    status = os.statvfs(full)
    place = os.path.realpath(full)
    while place not in mounts and place != "/":
        place = os.path.dirname(place)
    return Folder(full, status.f_bavail * status.f_frsize / 2.0**30, mounts.get(place, ""))


def mounts(path: str = "/proc/self/mounts") -> Dict[str, str]:
    """Return mount point -> type of the file system."""
    try:
        with open(path, errors="replace") as stream:
            rows = [line.split() for line in stream]
    except OSError:
        return {}
    return {row[1]: row[2] for row in rows if len(row) > 2}


def main(request: Dict[str, Any]) -> Any:
    """Answer the request."""
    asked = decode(DescribeRequest, request)
    try:
        entry = pwd.getpwuid(os.getuid())
        user, shell = entry.pw_name, entry.pw_shell
    except KeyError:
        user, shell = str(os.getuid()), ""
    known = mounts()
    folders = [found for found in (folder(path, known) for path in asked.folders) if found]
    unique = {found.path: found for found in folders}
    files = [path for pattern in asked.files for path in sorted(glob.glob(os.path.expanduser(pattern)))]
    answer = DescribeAnswer(
        user=user,
        shell=shell,
        cleared=os.environ.get(CLEARED, "").split(),
        folders=list(unique.values()),
        files=files,
        interfaces=interfaces(),
    )
    return encode(answer)
