"""The parts of `make compose-verify` that need no engine."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks.compose_verify import maintenance, network, packages
from benchmarks.compose_verify.stack import submitted_twice


def test_builds_see_the_folders_that_pip_knows_and_no_other_file(tmp_path: Path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a-1.whl").write_text("wheel")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "wheels" / "link").symlink_to(tmp_path / "secret")
    folders = packages.Folders()
    try:
        url = folders.url(str(tmp_path / "wheels"), index=False)
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{url}a-1.whl").text == "wheel"
            for path in ("../secret", "%2e%2e/secret", "link", "/../../etc/passwd"):
                assert client.get(f"{url}{path}").status_code == 404, path
            assert client.get(url.replace("/0/", "/1/")).status_code == 404
    finally:
        folders.server.shutdown()


def test_a_package_index_may_point_to_files_beside_its_pages(tmp_path: Path):
    (tmp_path / "simple" / "torch").mkdir(parents=True)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "torch.whl").write_text("wheel")
    folders = packages.Folders()
    try:
        url = folders.url(f"file://{tmp_path}/simple", index=True)
        assert url.endswith("/simple/")
        assert httpx.get(url.removesuffix("simple/") + "files/torch.whl", trust_env=False).text == "wheel"
    finally:
        folders.server.shutdown()


def test_addresses_of_mirrors_stay_as_they_are():
    folders = packages.Folders()
    try:
        assert folders.url("https://pypi.example.org/simple", index=True) == "https://pypi.example.org/simple"
        assert not folders.places
    finally:
        folders.server.shutdown()


def test_where_pip_needs_nothing_special_the_build_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(packages, "pip_options", lambda: {"no-cache-dir": "1"})
    with packages.build_settings(tmp_path) as more:
        assert more is None
    assert not list(tmp_path.iterdir())


def test_restoring_the_network_undoes_what_dockerd_does_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
):
    before = {"filter": {"chains": ["FORWARD ACCEPT"], "rules": ["-A FORWARD -i wg0 -j ACCEPT"]}}
    now = {
        "filter": {
            "chains": ["FORWARD DROP", "DOCKER -", "OTHERS -"],
            "rules": [
                "-A FORWARD -i wg0 -j ACCEPT",
                "-A FORWARD -o docker0 -j DOCKER",
                "-A FORWARD -i eth9 -j OTHERS",
            ],
        }
    }
    said: list[list[str]] = []
    monkeypatch.setattr(network, "rules", lambda: now)
    monkeypatch.setattr(network, "settings", lambda: {})
    monkeypatch.setattr(network, "succeeds", lambda *argv: False)
    monkeypatch.setattr(network, "output", lambda argv: said.append(argv) or "")
    network.HostNetwork(settings={}, rules=before).restore()
    assert [" ".join(argv) for argv in said] == [
        "iptables -t filter -D FORWARD -o docker0 -j DOCKER",
        "iptables -t filter -P FORWARD ACCEPT",
        "iptables -t filter -F DOCKER",
        "iptables -t filter -X DOCKER",
    ]


def job(name: str, state: str, start: str = "2026-01-01T10:00:00", end: str = "2026-01-01T10:05:00"):
    return {"JobName": name, "State": state, "Start": start, "End": end}


def test_an_attempt_after_a_failed_one_is_no_second_submission():
    first = job("llmb-sft-ab-1", "FAILED")
    assert not submitted_twice([first, job("llmb-sft-ab-2", "COMPLETED", start="2026-01-01T10:06:00")])
    # Beside one that still runs, after one that was cancelled or has succeeded, or the same one again: it is.
    assert submitted_twice([first, job("llmb-sft-ab-2", "COMPLETED", start="2026-01-01T10:04:00")])
    for state in ("COMPLETED", "CANCELLED by 61001", "RUNNING"):
        again = job("llmb-sft-ab-2", "COMPLETED", start="2026-01-01T10:06:00")
        assert submitted_twice([job("llmb-sft-ab-1", state), again]) == ["llmb-sft-ab-2"]
    assert submitted_twice([first, job("llmb-sft-ab-1", "COMPLETED")]) == ["llmb-sft-ab-1"]


def test_maintenance_finds_its_commands_in_the_document():
    found = {title: maintenance.commands(title) for title in ("Backup", "Restore", "Logs")}
    assert [len(lines) for lines in found.values()] == [1, 3, 2]
    assert all(line.startswith("docker compose ") for lines in found.values() for line in lines)


def test_maintenance_calls_compose_where_that_is_docker_s_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" >>"$SAID"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    stack: Any = SimpleNamespace(
        called=lambda profiles: ["docker", "compose", "--profile", *profiles], folder=tmp_path
    )
    maintenance.run(stack, ["demo"], "Backup", tmp_path)
    assert (tmp_path / "said").read_text().startswith("compose --profile demo exec -T database pg_dump")
