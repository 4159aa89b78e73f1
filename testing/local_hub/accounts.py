"""Accounts: tokens from a JSON file, with their users and roles."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from .errors import BAD_CREDENTIALS, HubError

ROLES = ("read", "write")


@dataclass(frozen=True)
class User:
    """One token's view: the user's name, the token's role, and the organisations the user belongs to."""

    name: str
    role: str
    orgs: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        """Return whether the user may act in a namespace: their own, or that of an organisation of theirs."""
        return namespace == self.name or namespace in self.orgs


class Accounts:
    """Tokens of this server."""

    def __init__(self, users: dict[str, User]) -> None:
        self._users = users

    @classmethod
    def load(cls, path: Path) -> Accounts:
        """Read `{"TOKEN": {"user": NAME, "role": "read" or "write", "orgs": [NAME, ...]}}`."""
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SystemExit(f"local_hub: cannot read the tokens file {path}: {error}") from error
        if not isinstance(entries, dict):
            raise SystemExit(f"local_hub: {path} must hold one JSON object, token -> {{user, role, orgs}}")
        users = {}
        for position, (token, entry) in enumerate(entries.items(), start=1):
            # The token is a secret and stays out of messages: entries are identified by their position.
            where = f"local_hub: {path}, entry {position}"
            if not isinstance(entry, dict) or not isinstance(entry.get("user"), str):
                raise SystemExit(f"{where}: 'user' is missing or not a string")
            if entry.get("role") not in ROLES:
                raise SystemExit(f"{where} ({entry['user']}): 'role' must be one of {', '.join(ROLES)}")
            users[token] = User(entry["user"], entry["role"], tuple(entry.get("orgs", ())))
        return cls(users)

    def user_of(self, request: Request) -> User | None:
        """Return the caller; None without a token. An unknown token is refused even if none is needed."""
        header = request.headers.get("authorization")
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        user = self._users.get(token.strip()) if scheme.lower() == "bearer" else None
        if user is None:
            raise HubError(401, BAD_CREDENTIALS)
        return user


def write_default_tokens(path: Path) -> None:
    """Create a tokens file with two random tokens, so that no server ever runs with well-known ones."""
    users = [{"user": "local", "role": "write", "orgs": []}, {"user": "reader", "role": "read", "orgs": []}]
    tokens = {f"hf_{secrets.token_hex(17)}": user for user in users}
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(tokens, file, indent=2)
