"""The number of processes that log in at the same time; each one here opens the files as another process does."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from llm_bridge.remote import handshakes


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def test_a_hundred_at_once_take_turns(folder: Path) -> None:
    now, most, done = 0, 0, 0

    async def log_in() -> None:
        nonlocal now, most, done
        async with handshakes.turn("slurm_x"):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1
            done += 1

    await asyncio.gather(*(log_in() for _ in range(100)))
    assert (most, done) == (handshakes.AT_ONCE, 100)
    assert len(list(folder.glob("*/login-*"))) == handshakes.AT_ONCE


async def test_another_login_node_has_its_own_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "AT_ONCE", 1)
    async with handshakes.turn("slurm_x"), handshakes.turn("slurm_y"):
        pass


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "AT_ONCE", 1)
    monkeypatch.setattr(handshakes, "MAX_WAIT_SECONDS", 0.1)
    async with handshakes.turn("slurm_x"), handshakes.turn("slurm_x"):
        pass


async def test_a_folder_that_cannot_be_used_stops_no_login(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / f"llm-bridge-{os.getuid()}").write_text("a file of that name")
    async with handshakes.turn("slurm_x"):
        pass
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    (folder / "llm-bridge-4242").mkdir()  # of another user
    async with handshakes.turn("slurm_x"):
        pass
    assert not list((folder / "llm-bridge-4242").iterdir())
