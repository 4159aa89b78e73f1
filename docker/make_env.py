"""Make .env for docker-compose.yaml: the settings of .env.example, with generated keys and passwords.

    python3 docker/make_env.py            .env and secrets/ in the top folder
    python3 docker/make_env.py --set EXECUTOR=CeleryExecutor --set COMPOSE_PROFILES=demo,celery

Existing values stay unchanged, and missing ones are added: run it again after an upgrade.
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
# Airflow's user in its containers where root makes the file.
DEFAULT_UID = 50000
DEMO_USER, DEMO_LOGIN = "svc", "login"


class EnvError(RuntimeError):
    """The file cannot be made; the message has the reason and the next action."""


def connections(hub_token: str) -> str:
    """Return the demo's connections as JSON; include/clusters/local.yaml and docker/mail/alerts.yaml name them."""
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
    """Return the function that generates the value of each generated setting.

    Args:
        known: Settings that have a value already; generated values may depend on them.
    """
    return {
        "AIRFLOW_UID": lambda: str(os.getuid() or DEFAULT_UID),
        "FERNET_KEY": lambda: base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "JWT_SECRET": lambda: secrets.token_urlsafe(64),  # HS512 needs 64 bytes
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
    """Parse the settings of an env file's text."""
    found = {}
    for match in filter(None, map(SETTING.match, text.splitlines())):
        value = match[2].strip()
        found[match[1]] = value[1:-1] if value[:1] in ("'", '"') and value[-1] == value[0] else value
    return found


def quoted(value: str) -> str:
    """Quote a value such that docker compose reads it back unchanged."""
    if "'" in value or "\n" in value:
        raise EnvError("a value with a quote or a line break cannot be written to an env file")
    return f"'{value}'" if re.search(r"[^\w@%+=:,./-]", value) else value


def complete(text: str, example: str, chosen: dict[str, str]) -> str:
    """Return an env file's text with missing values added; every other line stays unchanged.

    Args:
        text: Text of the file; of the example where there is no file yet.
        example: Text of .env.example, with all settings and their explanations.
        chosen: Settings to overwrite, with their values.
    """
    values = {**settings(example), **settings(text), **chosen}
    made = generators(values)
    fresh = dict(chosen)
    # CONNECTIONS last: it contains the Hub's token.
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
    """Return lines for the missing settings of a block of the example, with their comments."""
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
    """Make the demo's key pairs and known_hosts; existing files stay."""
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
    """Make a key pair without a passphrase, because Airflow cannot enter one."""
    if not shutil.which("ssh-keygen"):
        raise EnvError("ssh-keygen not found: install OpenSSH's client (Debian: openssh-client)")
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise EnvError(f"ssh-keygen cannot make {path}: {done.stderr.strip()}")


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600 atomically."""
    part = path.with_name(path.name + ".new")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, path)


def main() -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, default=ROOT / ".env", help="where to write (default: .env)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="value of a setting of .env.example"
    )
    given = parser.parse_args()
    try:
        example = EXAMPLE.read_text(encoding="utf-8")
        before = given.file.read_text(encoding="utf-8") if given.file.exists() else None
        chosen = dict(setting.split("=", 1) for setting in given.set)
        if unknown := set(chosen) - set(settings(example)):
            raise EnvError(f"--set {', '.join(sorted(unknown))}: unknown setting; .env.example lists all")
        text = complete(example if before is None else before, example, chosen)
        if text != before:
            given.file.parent.mkdir(parents=True, exist_ok=True)
            write_private(given.file, text)
        make_ssh(settings(text), ROOT)
    except (EnvError, OSError, ValueError) as error:
        print(f"make_env: {error}", file=sys.stderr)
        return 1
    print(f"{given.file}: the UI's user is admin, the password is in WEB_PASSWORDS")
    return 0


if __name__ == "__main__":
    sys.exit(main())
