"""User accounts of the cluster: own passwd, group and shadow files; the machine's stay as they are."""

from __future__ import annotations

import os
from pathlib import Path

# Fixed ids, far from those of real accounts. `svc` is who Airflow logs in as, `other` is somebody else.
USERS = {"svc": 61001, "other": 61002}


def home(user: str, shared: Path) -> Path:
    """Home directory of a user of the cluster."""
    return shared / "home" / user if user in USERS else Path("/root")


def write_account_files(etc: Path, shared: Path) -> None:
    """Write passwd, group and shadow: the machine's system accounts plus svc and other.

    Args:
        etc: folder to write to.
        shared: the shared file system; homes are made in its `home`.
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


def _without_ours(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if line.split(":")[0] not in USERS)
