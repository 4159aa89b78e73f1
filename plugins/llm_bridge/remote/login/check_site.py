"""Check the site before anything is submitted: workspace, paths of settings, Hub token.

Takes a CheckRequest and returns a CheckAnswer (``remote/messages.py``), with all problems at once.
"""

import errno
import fcntl
import os
import tempfile
from typing import Any, Dict, List

from llm_bridge.remote.login import hub_access
from llm_bridge.remote.messages import CheckAnswer, CheckRequest, decode, encode

# Errors of flock and link on a file system that does not support them. A lock that cannot be had now is none of them.
UNSUPPORTED = (
    errno.ENOSYS,
    errno.ENOLCK,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EINVAL,
    errno.EMLINK,
    errno.EXDEV,
)
# Bytes that must fit into the workspace: those of an attempt's files.
SPACE = 1024 * 1024


def check_workspace(path: str, setting: str) -> CheckAnswer:
    """Return the problems with the workspace, which is created if it is missing, and notes on it.

    Args:
        path: The workspace.
        setting: Key and file that set it.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".llm-bridge-check-") as stream:
            stream.write(bytes(SPACE))  # an empty file has a place on a full file system, too
            stream.flush()
            problems = check_lock(path, stream.fileno(), setting)
            return CheckAnswer(problems, check_link(path, stream.name))
    except OSError as error:
        problem = (
            "%s: %s cannot be created or written on the login node: %s. Set it to a directory that your user may "
            "write, on a file system that login and compute nodes share"
        )
        return CheckAnswer([problem % (setting, path, error.strerror)])


def check_lock(path: str, descriptor: int, setting: str) -> List[str]:
    """Return a problem if the workspace supports no flock, which protects submissions from each other."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return []
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            return []
        problem = (
            "%s: %s does not support file locks (flock: %s), which keep two submissions apart. Mount it "
            "on the login node with locks: Lustre with the option flock, NFS without nolock, "
            "BeeGFS with tuneUseGlobalFileLocks; or set workspace to another shared file system"
        )
        return [problem % (setting, path, error.strerror)]


def check_link(path: str, name: str) -> List[str]:
    """Return a note if the workspace supports no hard links: claims of job ids then take another way."""
    link = name + ".link"
    try:
        os.link(name, link)
        os.unlink(link)
        return []
    except OSError as error:
        note = "the workspace %s does not support hard links (%s): job ids are recorded without them"
        return [note % (path, error.strerror)]


def check_readable(path: str, setting: str) -> List[str]:
    """Return the problems with a path that a job will read.

    Args:
        path: The path.
        setting: Key and file that set it.
    """
    try:
        if os.path.isdir(path):
            os.listdir(path)
        else:
            open(path, "rb").close()
        return []
    except OSError as error:
        return ["%s: %s cannot be read on the login node: %s" % (setting, path, error.strerror)]


def main(request: Dict[str, Any]) -> Any:
    """Run all checks of the request."""
    asked = decode(CheckRequest, request)
    workspace = check_workspace(asked.workspace, asked.workspace_setting)
    problems = list(workspace.problems)
    for path, setting in asked.readable.items():
        problems += check_readable(path, setting)
    hub = hub_access.check(asked.hub) if asked.hub else CheckAnswer()
    return encode(CheckAnswer(problems + list(hub.problems), list(workspace.notes) + list(hub.notes)))
