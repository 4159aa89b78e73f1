"""Make .env for docker-compose.yaml: the settings of .env.example, with keys and passwords that nobody else has.

    python3 docker/make_env.py            .env and secrets/ in the top folder
    python3 docker/make_env.py --set EXECUTOR=CeleryExecutor --set COMPOSE_PROFILES=demo,celery

What is there already stays as it is, and what is missing is added: run it again after an upgrade.
Needs Python 3.9 and ssh-keygen, and no packages.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / ".env.example"
SETTING = re.compile(r"^([A-Z_]+)=(.*)$")
# Who Airflow is in its containers where root makes the file: nobody in particular.
UID_OF_NOBODY = 50000
DEMO_USER, DEMO_LOGIN = "svc", "login"


class EnvError(RuntimeError):
    """It cannot be made; the text says what to do."""


def connections(hub_token: str) -> str:
    """The demo's connections; include/clusters/local.yaml and docker/mail/alerts.yaml name them."""
    ssh = {"key_file": "/opt/airflow/ssh/id_svc", "known_hosts": "/opt/airflow/ssh/known_hosts"}
    return json.dumps(
        {
            "slurm_local": {
                "conn_type": "ssh",
                "host": DEMO_LOGIN,
                "port": 22,
                "login": DEMO_USER,
                "extra_dejson": ssh,
            },
            "huggingface_local": {"conn_type": "generic", "password": hub_token},
            "smtp_demo": {
                "conn_type": "smtp",
                "host": "mail",
                "port": 8026,
                "extra_dejson": {"disable_tls": True, "disable_ssl": True},
            },
        }
    )


def generators(known: dict[str, str]) -> dict[str, Callable[[], str]]:
    """Key -> what makes its value.

    Args:
        known: settings that have a value already; what is made may depend on them.
    """
    return {
        "AIRFLOW_UID": lambda: str(os.getuid() or UID_OF_NOBODY),
        "FERNET_KEY": lambda: base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "JWT_SECRET": lambda: secrets.token_urlsafe(64),  # HS512 wants 64 bytes
        "SESSION_KEY": lambda: secrets.token_hex(32),
        # Hexadecimal: they become part of URLs.
        "DATABASE_PASSWORD": lambda: secrets.token_hex(24),
        "REDIS_PASSWORD": lambda: secrets.token_hex(24),
        "WEB_PASSWORDS": lambda: json.dumps({"admin": secrets.token_urlsafe(12)}),
        "MUNGE_KEY": lambda: base64.b64encode(os.urandom(128)).decode(),
        "HUB_TOKEN": lambda: f"hf_{secrets.token_hex(17)}",
        "CONNECTIONS": lambda: connections(known["HUB_TOKEN"]),
    }


def settings(text: str) -> dict[str, str]:
    """The settings in an env file's text."""
    found = {}
    for match in filter(None, map(SETTING.match, text.splitlines())):
        value = match[2].strip()
        found[match[1]] = value[1:-1] if value[:1] in ("'", '"') and value[-1] == value[0] else value
    return found


def quoted(value: str) -> str:
    """As docker compose reads it back unchanged."""
    if "'" in value or "\n" in value:
        raise EnvError("a value with a quote or a line break cannot be written to an env file")
    return f"'{value}'" if re.search(r"[^\w@%+=:,./-]", value) else value


def complete(text: str, example: str, chosen: dict[str, str]) -> str:
    """An env file's text with the values that it lacks; every other line stays as it is.

    Args:
        text: the file's; the example's where there is none yet.
        example: knows all settings, and explains them.
        chosen: settings that get this value, whatever they had.
    """
    values = {**settings(example), **settings(text), **chosen}
    made = generators(values)
    fresh = dict(chosen)
    # CONNECTIONS last: it has the Hub's token in it.
    for key in sorted(made, key="CONNECTIONS".__eq__):
        if not values.get(key):
            values[key] = fresh[key] = made[key]()
    lines = []
    for line in text.splitlines():
        match = SETTING.match(line)
        lines.append(f"{match[1]}={quoted(fresh[match[1]])}" if match and match[1] in fresh else line)
    for block in example.split("\n\n"):
        lines += added(block, set(settings(block)) - set(settings(text)), values)
    return "\n".join(lines) + "\n"


def added(block: str, missing: set[str], values: dict[str, str]) -> list[str]:
    """Lines for those settings of a block of the example that a file lacks, with what explains them."""
    lines: list[str] = []
    comments: list[str] = []
    for line in block.splitlines():
        match = SETTING.match(line)
        if not match:
            comments.append(line)
            continue
        if match[1] in missing:
            lines += [*comments, f"{match[1]}={quoted(values[match[1]])}"]
        comments = []
    return ["", *lines] if lines else []


def make_ssh(values: dict[str, str], base: Path) -> None:
    """The demo's key pairs and known_hosts; what is there stays."""
    folder, host_key = base / values["SSH_DIR"], base / values["SSH_HOST_KEY_FILE"]
    key = folder / f"id_{DEMO_USER}"
    for path, comment in ((key, DEMO_USER), (host_key, DEMO_LOGIN)):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            new_key(path, comment)
    known_hosts = folder / "known_hosts"
    if not known_hosts.exists():
        kind, public = host_key.with_name(host_key.name + ".pub").read_text().split()[:2]
        known_hosts.write_text(f"{DEMO_LOGIN} {kind} {public}\n")
    if os.getuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, int(values["AIRFLOW_UID"]), 0)


def new_key(path: Path, comment: str) -> None:
    """A key pair without a passphrase: Airflow has nobody to ask for one."""
    if not shutil.which("ssh-keygen"):
        raise EnvError(
            "there is no ssh-keygen on this machine: install OpenSSH's client (Debian: openssh-client)"
        )
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise EnvError(f"ssh-keygen cannot make {path}: {done.stderr.strip()}")


def write_private(path: Path, text: str) -> None:
    """Write a 0600 file in one piece."""
    part = path.with_name(path.name + ".new")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, default=ROOT / ".env", help="where to write (default: .env)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of .env.example"
    )
    given = parser.parse_args()
    try:
        example = EXAMPLE.read_text(encoding="utf-8")
        before = given.file.read_text(encoding="utf-8") if given.file.exists() else None
        chosen = dict(setting.split("=", 1) for setting in given.set)
        if unknown := set(chosen) - set(settings(example)):
            raise EnvError(f"--set {', '.join(sorted(unknown))}: no such setting; .env.example has them all")
        text = complete(example if before is None else before, example, chosen)
        if text != before:
            given.file.parent.mkdir(parents=True, exist_ok=True)
            write_private(given.file, text)
        make_ssh(settings(text), ROOT)
    except (EnvError, OSError, ValueError) as error:
        print(f"make_env: {error}", file=sys.stderr)
        return 1
    print(f"{given.file}: the UI's user is admin, its password is in WEB_PASSWORDS")
    return 0


if __name__ == "__main__":
    sys.exit(main())
