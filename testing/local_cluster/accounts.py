"""Accounts of the cluster: the hosts have their own /etc; the machine's is only read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from testing.local_cluster.command import checked

# Fixed ids, far from those of real accounts. Airflow logs in as `svc`; `other` is another user.
USERS = {"svc": 61001, "other": 61002}


def home(user: str, shared: Path) -> Path:
    """Return the home directory of a user of the cluster."""
    return shared / "home" / user if user in USERS else Path("/root")


def write_account_files(etc: Path, shared: Path) -> None:
    """Write passwd, group and shadow: the machine's system accounts plus svc and other.

    Args:
        etc: Folder to write to.
        shared: The shared file system; homes are created in its `home`.
    """
    passwd, group, shadow = (_without_ours(Path("/etc") / f) for f in ("passwd", "group", "shadow"))
    for user, uid in USERS.items():
        where = home(user, shared)
        passwd += f"{user}:x:{uid}:{uid}::{where}:/bin/bash\n"
        group += f"{user}:x:{uid}:\n"
        # '*' has no password; '!' would be a locked account, which sshd refuses even with a key.
        shadow += f"{user}:*:19000:0:99999:7:::\n"
        where.mkdir(parents=True, exist_ok=True)
        os.chown(where, uid, uid)
        where.chmod(0o755)
    (etc / "passwd").write_text(passwd)
    (etc / "group").write_text(group)
    secret = etc / "shadow"
    secret.touch(mode=0o600)
    secret.write_text(shadow)
    secret.chmod(0o600)


def copy_etc(target: Path) -> None:
    """Copy the machine's /etc, which the hosts mount as theirs.

    A mount over the machine's own /etc/passwd is not reliable: a program that replaces that file, as adduser does
    when a package is installed, makes the kernel drop the mount in every namespace (rename(2) over a mount point).

    Args:
        target: The copy's directory; what was there is replaced.
    """
    shutil.rmtree(target, ignore_errors=True)
    checked(["cp", "-a", "/etc", str(target)])


def _without_ours(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if line.split(":")[0] not in USERS)
