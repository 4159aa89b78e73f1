"""The Airflow connection of a login node: what is wrong with it, and what it trusts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Connection

from llm_bridge.remote import ssh_settings

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPGtlXlv0dnJav6OYYEmVA6bZGZGuyL88/BDmoV15gvJ"
TYPE, BASE64 = KEY.split()
HASHED = "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg="


def connection(**values: Any) -> Connection:
    values = {"host": "login.example.org", "login": "ada", **values}
    extra = values.pop("extra", None)
    return Connection(conn_id="x", conn_type="ssh", extra=json.dumps(extra) if extra else None, **values)


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"  {KEY}\n",
        f"{KEY} root@login",
        BASE64,
        f"login.example.org {KEY}",
        f"[login.example.org]:2222,10.0.0.1 {KEY}",
        f"{HASHED} {KEY}",
        f"# login.example.org:22 SSH-2.0-OpenSSH_9.2\nlogin.example.org {KEY}",
    ],
)
def test_a_host_key_is_read_in_every_form_that_users_have_it_in(text: str) -> None:
    assert [key.export_public_key().decode().split()[:2] for key in ssh_settings.host_keys(text)] == [
        [TYPE, BASE64]
    ]
    assert ssh_settings.problems(connection(extra={"host_key": text})) == []


def test_all_keys_of_a_scan_are_read() -> None:
    assert len(ssh_settings.host_keys(f"h {KEY}\nh {KEY}\n")) == 2


@pytest.mark.parametrize(
    "text",
    ["", "SHA256:8pr0lPpPAhvZ", "ssh-ed25519", "ssh-ed25519 AAAAC3Nz...", KEY[:40], f"@revoked * {KEY}"],
)
def test_what_is_no_host_key_is_a_problem_with_the_form_to_use(text: str) -> None:
    [problem] = ssh_settings.problems(connection(extra={"host_key": text}))
    assert "extra 'host_key'" in problem and "`ssh-keyscan -t ed25519 login.example.org`" in problem
    assert ("only a fingerprint" in problem) is text.startswith("SHA256:")


def test_the_command_for_the_host_key_is_that_of_the_connections_port() -> None:
    assert ssh_settings.scan(connection(port=22)) == "ssh-keyscan -t ed25519 login.example.org"
    assert ssh_settings.scan(connection(port=2222)) == "ssh-keyscan -t ed25519 -p 2222 login.example.org"


@pytest.mark.parametrize("host", ["ada@login", "ssh://login", "login:2222", "login ", "[::1]:22"])
def test_a_host_with_more_than_a_name_is_a_problem(host: str) -> None:
    [problem] = ssh_settings.problems(connection(host=host))
    assert repr(host) in problem and "name or address alone" in problem


@pytest.mark.parametrize("host", ["login", "login.example.org", "10.0.0.1", "fe80::1:22"])
def test_a_hosts_name_or_address_is_no_problem(host: str) -> None:
    assert ssh_settings.problems(connection(host=host)) == []


def test_all_problems_are_found_at_once(tmp_path: Path) -> None:
    extra = {"key_file": f"{tmp_path}/id", "known_hosts": f"{tmp_path}/known", "host_key": "x"}
    found = ssh_settings.problems(connection(host=None, login=None, extra=extra))
    words = ["no host", "no login", "'key_file'", "'known_hosts'", "'host_key'"]
    assert len(found) == len(words)
    assert all(word in problem for word, problem in zip(words, found, strict=True))


def test_a_connection_without_extra_is_no_problem_itself() -> None:
    assert ssh_settings.problems(connection()) == []


@pytest.mark.parametrize(
    "extra", [{"no_host_key_check": True}, {"ignore_hostkey_verification": "true"}, {"known_hosts": "None"}]
)
def test_the_check_of_the_host_key_cannot_be_skipped(extra: dict[str, Any]) -> None:
    [problem] = ssh_settings.problems(connection(extra=extra))
    assert "no_host_key_check" in problem and "set the extra 'host_key'" in problem


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"host_key": KEY}, "'host_key' has ssh-ed25519 SHA256:"),
        ({"known_hosts": "/k"}, "/k, which has no such key"),
        (None, "no 'host_key', and ~/.ssh/known_hosts"),
    ],
)
def test_a_message_names_the_host_keys_that_are_trusted(extra: dict[str, Any] | None, text: str) -> None:
    assert text in ssh_settings.trusted(connection(extra=extra))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"extra": {"key_file": "/k/id"}}, "the key /k/id (extra 'key_file')"),
        ({"extra": {"private_key": "SECRET"}}, "the key in the extra 'private_key'"),
        ({"password": "SECRET"}, "the connection's password"),
        ({}, "no 'key_file' (it is empty)"),
        ({"extra": {"keyfile": "/k", "host_key": KEY}}, "no 'key_file' (it has host_key, keyfile)"),
    ],
)
def test_a_message_names_the_means_of_login_and_no_secret(values: dict[str, Any], text: str) -> None:
    found = ssh_settings.credentials(connection(**values))
    assert text in found and "SECRET" not in found
