"""Check the site before anything is submitted: workspace, paths of settings, Hub token.

Takes a CheckRequest and returns a CheckAnswer (``remote/messages.py``), with all findings at once.
"""

import errno
import fcntl
import os
import subprocess
import tempfile
from typing import Any, Dict, List

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.login import hub_access
from llm_bridge.remote.messages import (
    ERROR,
    OK,
    WARNING,
    CheckAnswer,
    CheckRequest,
    Finding,
    decode,
    encode,
)

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
QUOTA_TIMEOUT_SECONDS = 15


def check_workspace(path: str, setting: str, min_free_gib: float) -> List[Finding]:
    """Check the workspace, which is created if it is missing.

    Args:
        path: The workspace.
        setting: Key and file that set it.
        min_free_gib: Free space in GiB below which there is a warning.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".llm-bridge-check-") as stream:
            stream.write(bytes(SPACE))  # an empty file has a place on a full file system, too
            stream.flush()
            found = [Finding("workspace", OK, "%s can be written" % path)]
            found.append(check_lock(path, stream.fileno(), setting))
            found.append(check_link(path, stream.name))
            found.append(check_rename(path, stream.name, setting))
            return [*found, check_space(path, setting, min_free_gib)]
    except OSError as error:
        detail = "%s: %s cannot be created or written on the login node: %s" % (setting, path, error.strerror)
        action = "set it to a directory that your user may write, on a file system that login and compute nodes share"
        return [Finding("workspace", ERROR, detail, action)]


def check_lock(path: str, descriptor: int, setting: str) -> Finding:
    """Check that the workspace supports flock, which protects submissions from each other."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            detail = "%s: %s does not support file locks (flock: %s), which keep two submissions apart"
            action = (
                "mount it on the login node with locks: Lustre with the option flock, NFS without nolock, "
                "BeeGFS with tuneUseGlobalFileLocks; or set workspace to another shared file system"
            )
            return Finding("file locks", ERROR, detail % (setting, path, error.strerror), action)
    return Finding("file locks", OK, "the workspace supports flock")


def check_link(path: str, name: str) -> Finding:
    """Check for hard links in the workspace: without them, claims of job ids take another way."""
    link = name + ".link"
    try:
        os.link(name, link)
        os.unlink(link)
    except OSError as error:
        detail = "the workspace %s does not support hard links (%s): job ids are recorded without them"
        return Finding("hard links", OK, detail % (path, error.strerror))
    return Finding("hard links", OK, "the workspace supports hard links")


def check_rename(path: str, name: str, setting: str) -> Finding:
    """Check that a file can replace another one, as every file that others read is written."""
    new, old = name + ".new", name + ".old"
    try:
        for each in (old, new):
            with open(each, "w") as stream:
                stream.write(each)
        os.rename(new, old)
        with open(old) as stream:
            replaced = stream.read() == new
    finally:
        for each in (old, new):
            if os.path.exists(each):
                os.unlink(each)
    if replaced:
        return Finding("atomic rename", OK, "a renamed file replaces another one")
    detail = "%s: in %s a renamed file does not replace another one" % (setting, path)
    return Finding("atomic rename", ERROR, detail, "set workspace to another shared file system")


def check_space(path: str, setting: str, min_free_gib: float) -> Finding:
    """Check the free space of the workspace."""
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize / 2.0**30
    detail = "%.1f GiB of %.1f GiB are free" % (free, status.f_blocks * status.f_frsize / 2.0**30)
    if free >= min_free_gib:
        return Finding("free space", OK, detail)
    detail = "%s: %s in %s; preflight.min_free_gib requires %g GiB on the nodes" % (
        setting,
        detail,
        path,
        min_free_gib,
    )
    return Finding("free space", WARNING, detail, "free space there, or set workspace to another file system")


def quota(path: str) -> Finding:
    """Return what the site's commands print about the user's quota."""
    commands = (["lfs", "quota", "-h", "-u", str(os.getuid()), path], ["quota", "-s", "-w"])
    for command in commands:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                universal_newlines=True,
                timeout=QUOTA_TIMEOUT_SECONDS,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
        if done.returncode == 0 and lines:
            text = "; ".join(lines)[:500]
            if "*" in text:  # the mark of both commands for a limit that is exceeded
                action = "free space, or ask for a higher quota; * marks the limit"
                return Finding("quota", WARNING, "the quota is exceeded: " + text, action)
            return Finding("quota", OK, text)
    return Finding("quota", OK, "none is known: lfs quota and quota print nothing")


def check_readable(path: str, setting: str) -> Finding:
    """Check that a path which a job will read can be read.

    Args:
        path: The path.
        setting: Key and file that set it.
    """
    key = setting.partition(" ")[0]
    try:
        if os.path.isdir(path):
            os.listdir(path)
        else:
            open(path, "rb").close()
        return Finding(key, OK, "%s can be read" % path)
    except OSError as error:
        detail = "%s: %s cannot be read on the login node: %s" % (setting, path, error.strerror)
        return Finding(key, ERROR, detail, "correct the path, or its permissions")


def describe_environment(path: str) -> List[Finding]:
    """Name the hash of an environment that install-environment has built; return nothing for any other one.

    Args:
        path: The environment, as in the cluster file.
    """
    found = attempt_dir.read_json(attempt_dir.environment_record(os.path.realpath(path)))
    if not isinstance(found, dict) or "hash" not in found:
        return []
    built = "environment %s: %s, Python %s, built %s"
    detail = built % (found["hash"], path, found.get("python"), found.get("built"))
    return [Finding("environment hash", OK, detail)]


def main(request: Dict[str, Any]) -> Any:
    """Run all checks of the request."""
    asked = decode(CheckRequest, request)
    found = check_workspace(asked.workspace, asked.workspace_setting, asked.min_free_gib)
    if asked.quota and found[0].result == OK:
        found.append(quota(asked.workspace))
    found += [check_readable(path, setting) for path, setting in asked.readable.items()]
    if asked.hub:
        found += hub_access.check(asked.hub)
    if asked.environment:
        found += describe_environment(asked.environment)
    return encode(CheckAnswer(found))
