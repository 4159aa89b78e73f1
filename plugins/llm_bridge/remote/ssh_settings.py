"""Read and check the Airflow connection of a login node: user, private key and host key."""

from __future__ import annotations

import base64
import binascii
import os
import re
from typing import Any

import asyncssh

KEEPALIVE_SECONDS = 30


def scan(connection: Any) -> str:
    """Return the ssh-keyscan command for a connection's login node, for messages.

    Args:
        connection: The Airflow connection.
    """
    port = f"-p {connection.port} " if connection.port not in (None, 22) else ""
    return f"ssh-keyscan -t ed25519 {port}{connection.host or 'HOST'}"


def host_key_form(connection: Any) -> str:
    """Return what to do to set the extra ``host_key``, for messages.

    Args:
        connection: The Airflow connection.
    """
    return f"put the line that `{scan(connection)}` prints there, or its last two words, such as 'ssh-ed25519 AAAA…'"


def host_keys(text: str) -> list[asyncssh.SSHKey]:
    """Return the public keys in the extra ``host_key``.

    Each form that users have a host key in is read: type and key, a line of ``ssh-keyscan`` or of a known_hosts file
    (hashed or not), several of them, the base64 text alone.

    Args:
        text: The extra's value.

    Raises:
        ValueError: There is no key in it, or one that cannot be read.
    """
    # A marker gives a key another meaning: @revoked, @cert-authority.
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("#", "@"))]
    # The base64 text of every public key begins so: it is the length of the name of its type.
    found = [word for line in lines for word in line.split() if word.startswith("AAAA")]
    if not found:
        is_fingerprint = re.search("SHA256:|([0-9a-f]{2}:){15}", text)
        raise ValueError(f"there is {'only a fingerprint' if is_fingerprint else 'no public key'} in it")
    return [_public_key(word) for word in found]


def _public_key(word: str) -> asyncssh.SSHKey:
    try:
        data = base64.b64decode(word, validate=True)
        kind = data[4 : 4 + int.from_bytes(data[:4], "big")].decode("ascii")
        return asyncssh.import_public_key(f"{kind} {word}")
    except (binascii.Error, ValueError):  # also asyncssh.KeyImportError
        raise ValueError(f"{word[:20]}… is no whole public key") from None


def problems(connection: Any) -> list[str]:
    """Return what is wrong with a connection of type SSH, all at once.

    Args:
        connection: The Airflow connection.
    """
    extra = connection.extra_dejson
    found = []
    if not connection.host:
        found.append("it has no host: enter the login node's name")
    elif wrong := re.search(r"[@/\s[]|^[^:]*:\d+$", connection.host):  # an IPv6 address has several colons
        found.append(
            f"its host is {connection.host!r}, with {wrong[0]!r}: enter the login node's name or address alone; user "
            "name and port have fields of their own"
        )
    if not connection.login:
        found.append("it has no login (Username): enter your user name on the cluster")
    for key in ("key_file", "known_hosts"):
        # The provider takes "none" for a known_hosts file as no check of the host key.
        path = os.path.expanduser(str(extra.get(key) or ""))
        if path and path.lower() != "none" and not os.access(path, os.R_OK):
            found.append(
                f"its extra {key!r} is {path}, which the user that runs Airflow cannot read on this host: set it to a "
                "file that is on all of Airflow's hosts"
            )
    if str(extra.get("no_host_key_check", extra.get("ignore_hostkey_verification"))).lower() == "true" or (
        str(extra.get("known_hosts", "")).lower() == "none"
    ):
        found.append(
            "it sets no_host_key_check: a machine that impersonates the login node could read the Hub's token. Remove "
            "it, and set the extra 'host_key'"
        )
    elif "host_key" in extra:
        try:
            host_keys(str(extra["host_key"]))
        except ValueError as error:
            found.append(f"its extra 'host_key' cannot be used, {error}: {host_key_form(connection)}")
    return found


def known_hosts_of(connection: Any) -> bytes:
    """Return the extra ``host_key`` as lines of a known_hosts file.

    They are for any host, because this connection has only one: ~/.ssh/config may give it another name.

    Args:
        connection: The Airflow connection.
    """
    keys = host_keys(str(connection.extra_dejson["host_key"]))
    return b"".join(b"* " + key.export_public_key() for key in keys)


def options(connection: Any) -> dict[str, Any]:
    """Return the arguments of ``asyncssh.connect`` for a connection without :func:`problems`.

    They are those of the ssh provider's hook (``provider_login``), for a process without Airflow. asyncssh also reads
    ``~/.ssh/config``, which is the place for ``ProxyJump``.

    Args:
        connection: The Airflow connection.

    Raises:
        ValueError: The private key cannot be read (asyncssh.KeyImportError).
    """
    extra = connection.extra_dejson
    found: dict[str, Any] = {
        "host": connection.host,
        "port": connection.port or 22,
        "username": connection.login,
        "password": connection.password,
        # Against firewalls that drop connections without traffic.
        "keepalive_interval": KEEPALIVE_SECONDS,
    }
    passphrase = extra.get("passphrase") or extra.get("private_key_passphrase")
    if passphrase:
        found["passphrase"] = passphrase
    if extra.get("private_key"):
        found["client_keys"] = [asyncssh.import_private_key(extra["private_key"], passphrase)]
    elif extra.get("key_file"):
        found["client_keys"] = extra["key_file"]
    known = os.path.expanduser(str(extra.get("known_hosts") or "~/.ssh/known_hosts"))
    if "host_key" in extra:
        found["known_hosts"] = known_hosts_of(connection)
    elif extra.get("known_hosts") or os.path.isfile(known):
        found["known_hosts"] = known
    return found


def trusted(connection: Any) -> str:
    """Return the host keys that a connection trusts, for messages.

    Args:
        connection: The Airflow connection.
    """
    extra = connection.extra_dejson
    if "host_key" in extra:
        keys = host_keys(str(extra["host_key"]))
        shown = ", ".join(f"{key.get_algorithm()} {key.get_fingerprint()}" for key in keys)
        return f"the extra 'host_key' has {shown}"
    if path := extra.get("known_hosts"):
        return f"the extra 'known_hosts' names {path}, which has no such key for this host"
    return "the extra has no 'host_key', and ~/.ssh/known_hosts of the user that runs Airflow has no such key"


def credentials(connection: Any) -> str:
    """Return the means of login of a connection, for messages; no secret is in it.

    Args:
        connection: The Airflow connection.
    """
    extra = connection.extra_dejson
    if extra.get("private_key"):
        return "the key in the extra 'private_key'"
    if path := extra.get("key_file"):
        return f"the key {path} (extra 'key_file')"
    if connection.password:
        return "the connection's password"
    keys = f"it has {', '.join(sorted(extra))}" if extra else "it is empty"
    return f"the keys in ~/.ssh of the user that runs Airflow, because the extra has no 'key_file' ({keys})"
