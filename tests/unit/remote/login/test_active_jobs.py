"""The helper `active_jobs`: jobs of this workspace that bear the name of their attempt."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Owner
from llm_bridge.remote.login import active_jobs
from llm_bridge.remote.messages import ActiveAnswer, ActiveRequest, decode, encode

OWNER = Owner("d", "r", "t", -1, "llmb-t-1", "1")


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    attempt = tmp_path / "work" / "d" / "r" / "t" / "attempt-1"
    attempt_dir.write_json(str(attempt / attempt_dir.OWNER), OWNER)
    return attempt


def run(tmp_path: Path, **changes: Any) -> ActiveAnswer:
    request = ActiveRequest(f"{tmp_path}/work", **changes)
    answer: ActiveAnswer = decode(ActiveAnswer, active_jobs.main(encode(request)))
    return answer


def test_only_jobs_with_the_name_of_their_attempt_in_this_workspace_are_listed(
    attempt: Path, tmp_path: Path, slurm: Any
) -> None:
    rows = [
        f"7|llmb-t-1|RUNNING|{attempt}",
        f"8|llmb-t-2|RUNNING|{attempt}",
        f"9|llmb-t-1|RUNNING|{tmp_path}/elsewhere",
        f"10|other|RUNNING|{attempt}",
        f"no id|llmb-t-1|RUNNING|{attempt}",
        "a line of the site's wrapper",
    ]
    slurm.set("squeue", "\n".join(rows) + "\n")
    assert run(tmp_path).jobs == [("7", "RUNNING", str(attempt), OWNER._asdict(), None)]


def test_a_mark_is_reported_with_its_age(attempt: Path, tmp_path: Path, slurm: Any) -> None:
    slurm.set("squeue", f"7|llmb-t-1|RUNNING|{attempt}\n")
    [job] = run(tmp_path, mark=[str(attempt)]).jobs
    assert 0 <= job.orphan_seen_s < 60
    past = time.time() - 500
    os.utime(attempt / attempt_dir.ORPHAN_SEEN, (past, past))
    [job] = run(tmp_path).jobs
    assert 500 <= job.orphan_seen_s < 600


def test_an_unavailable_slurmctld_is_an_error_and_no_empty_list(tmp_path: Path, slurm: Any) -> None:
    slurm.set("squeue", code=1, errors="Unable to contact slurm controller")
    assert run(tmp_path) == ([], "Unable to contact slurm controller")
