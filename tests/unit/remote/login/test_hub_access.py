"""A Hub token on the login node: accepted, allowed to write, and never shown."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from llm_bridge.remote.login import hub_access
from llm_bridge.remote.messages import ERROR, Finding, HubAccess


class Said(NamedTuple):
    problems: list[str]
    notes: list[str]


def said(found: list[Finding]) -> Said:
    return Said(
        [finding.sentence for finding in found if finding.result == ERROR],
        [finding.detail for finding in found if finding.result != ERROR],
    )


def check_hub(endpoint: str, token: str = "hf_abc") -> Said:
    return said(hub_access.check(HubAccess(endpoint, token)))


@pytest.mark.parametrize("token", ["hf_abc\n", "hf_abc\r\nX: y", "hf_äbc\u4e00"])
@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:1", "no-scheme", "http://127.0.0.1:x", "http://[", "ftp://h"]
)
def test_the_check_shows_no_token_whatever_fails(endpoint: str, token: str) -> None:
    problems, notes = check_hub(endpoint, token)
    assert not problems and len(notes) == 1 and endpoint in notes[0]
    assert "hf_" not in notes[0] and "bc" not in notes[0]


def test_the_check_names_the_cause_if_the_hub_is_unreachable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listened to
        [note] = check_hub(f"http://127.0.0.1:{closed.getsockname()[1]}").notes
    assert "(Connection refused)" in note


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that gives one answer, whatever it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            accepted, _ = server.accept()
            with accepted:
                accepted.recv(10_000)
                accepted.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_an_answer_that_is_not_http_means_that_the_hub_is_unreachable() -> None:
    with answering(b"SSH-2.0-x\r\n") as endpoint:
        [note] = check_hub(endpoint).notes
    assert "(BadStatusLine)" in note


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_a_token_that_the_hub_refuses_is_a_problem(status: str) -> None:
    with answering(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()) as endpoint:
        problems, notes = check_hub(endpoint)
    text = f"the Hub at {endpoint} refuses the token (HTTP {status[:3]}). Store a valid one in the token's connection"
    assert not notes and problems == [text]


def test_a_hub_that_has_a_fault_is_a_note_and_no_problem() -> None:
    with answering(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n") as endpoint:
        problems, notes = check_hub(endpoint)
    assert not problems and "HTTP 503" in notes[0]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_answer_of_the_hub_that_no_retry_changes_is_a_problem(status: int) -> None:
    with answering(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n".encode()) as endpoint:
        [problem] = check_hub(endpoint).problems
    assert f"HTTP {status}" in problem


@pytest.mark.parametrize("status", [408, 409, 412, 429, 500, 503])
def test_an_answer_of_a_busy_hub_is_no_problem(status: int) -> None:
    with answering(f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n".encode()) as endpoint:
        assert not check_hub(endpoint).problems


def test_the_account_of_the_token_is_a_note() -> None:
    body = b'{"name": "ada"}'
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as endpoint:
        problems, notes = check_hub(endpoint)
    assert not problems and "ada" in notes[0]


def test_a_token_file_is_read_on_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_abc\n")
    with answering(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n") as endpoint:
        answer = said(hub_access.check(HubAccess(endpoint, "", token_file=f"{tmp_path}/token")))
    assert "refuses the token" in answer.problems[0]
    missing = HubAccess("http://h", "", token_file="/none", source="the file X of key Y")
    assert said(hub_access.check(missing)).problems == [
        "the file X of key Y: No such file or directory. Store a token there"
    ]


def account(role: str | None = "write", **fine_grained: Any) -> dict[str, Any]:
    """The Hub's answer to whoami-v2, in its real shape."""
    token: dict[str, Any] = {"displayName": "ci", "role": role, "createdAt": "2026-01-01T00:00:00.000Z"}
    if fine_grained:
        token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": []} | fine_grained
    return {
        "type": "user",
        "id": "0123456789abcdef01234567",
        "name": "bob",
        "fullname": "Bob",
        "isPro": False,
        "orgs": [
            {"type": "org", "id": "1", "name": "Acme", "fullname": "Acme", "roleInOrg": "write"},
            {"type": "org", "id": "2", "name": "lab", "fullname": "Lab", "roleInOrg": "contributor"},
            {"type": "org", "id": "3", "name": "school", "fullname": "School", "roleInOrg": "read"},
        ],
        "auth": {"type": "access_token", "accessToken": token},
    }


def scope(kind: str, name: str, *permissions: str) -> dict[str, Any]:
    return {"entity": {"_id": "9", "type": kind, "name": name}, "permissions": list(permissions)}


def problems(answer: dict[str, Any], repo_id: str) -> list[str]:
    wrong = hub_access.cannot_write(answer, HubAccess("https://huggingface.co", "hf_abc", repo_id))
    return [wrong.sentence] if wrong else []


@pytest.mark.parametrize("repo_id", ["bob/m", "acme/m", "lab/m"])
def test_a_write_token_writes_to_the_user_and_to_organisations_with_a_writing_role(repo_id: str) -> None:
    assert problems(account(), repo_id) == []


def test_a_read_only_token_is_a_problem() -> None:
    [problem] = problems(account("read"), "bob/m")
    assert "of bob is read-only" in problem and "https://huggingface.co/settings/tokens" in problem


def test_another_owner_is_a_problem_that_lists_the_valid_ones() -> None:
    [problem] = problems(account(), "meta-llama/m")
    assert "bob cannot write to meta-llama/m: it is no member of it" in problem
    assert problem.endswith("owners: bob, Acme, lab")


def test_an_organisation_in_which_the_user_only_reads_is_a_problem() -> None:
    [problem] = problems(account(), "school/m")
    assert "may only read" in problem


WRITE = ("repo.content.read", "repo.write")


@pytest.mark.parametrize(
    "grants",
    [
        {"scoped": [scope("user", "bob", *WRITE)]},
        {"scoped": [scope("model", "Bob/m", *WRITE)]},
        {"scoped": [scope("org", "acme", *WRITE), scope("user", "bob", *WRITE)]},
        {"scoped": [scope("resource-group", "g", *WRITE)]},
        {"global": ["repo.write"]},
    ],
)
def test_a_fine_grained_token_with_write_access_to_the_repository_is_fine(grants: dict[str, Any]) -> None:
    assert problems(account("fineGrained", **grants), "bob/m") == []


@pytest.mark.parametrize(
    "scopes",
    [
        [],
        [scope("user", "bob", "repo.content.read", "discussion.write")],
        [scope("org", "acme", *WRITE)],
        [scope("model", "bob/other", *WRITE)],
    ],
)
def test_a_fine_grained_token_without_it_is_a_problem(scopes: list[Any]) -> None:
    [problem] = problems(account("fineGrained", scoped=scopes), "bob/m")
    assert "'ci' of bob has no write access (repo.write) to bob/m" in problem


@pytest.mark.parametrize(
    "answer", [{"name": "bob"}, {"name": "bob", "auth": {"type": "oauth"}}, {"auth": []}]
)
def test_an_answer_that_does_not_tell_is_no_problem(answer: dict[str, Any]) -> None:
    assert problems(answer, "acme/m") == []


def test_the_hubs_answer_is_judged_for_the_repository_of_the_upload() -> None:
    body = json.dumps(account("read")).encode()
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as endpoint:
        answer = said(hub_access.check(HubAccess(endpoint, "hf_abc", "bob/m")))
    assert "read-only" in answer.problems[0] and answer.notes == ["the token belongs to the Hub account bob"]
