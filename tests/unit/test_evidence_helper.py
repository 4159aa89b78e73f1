"""include/login/evidence.py: what it reads of logs and checkpoints."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.failures.evidence import Place, in_lines, request
from llm_bridge.failures.signatures import BY_ID, TABLE
from llm_bridge.failures.words import words_of
from tests.unit.login import load

evidence = load("evidence")
OOM = BY_ID["torch_cuda_oom"].excerpt
HYDRA = BY_ID["hydra"].excerpt
LIFE = "[llm-bridge] llmb-t-12-1: Slurm job 12 on n1"


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    folder = tmp_path / "attempt-1"
    folder.mkdir()
    (folder / "settings.json").write_text("{}")
    return folder


def read(attempt: Path, *logs: str, **changes: Any) -> dict[str, Any]:
    place = Place("test", "12", str(attempt), logs or (f"{attempt}/output.log",))
    return evidence.main({**request(place, None), **changes})


def test_the_first_match_of_each_signature_is_told_with_its_line(attempt: Path) -> None:
    (attempt / "output.log").write_text(f"{LIFE}\nfine\n{OOM}\nother\n{OOM}\n{HYDRA}\n")
    found = {match["id"]: match["line"] for match in read(attempt)["found"]}
    assert (found["torch_cuda_oom"], found["hydra"]) == (3, 6)


def test_an_earlier_life_of_a_job_that_slurm_started_anew_does_not_count(attempt: Path) -> None:
    (attempt / "output.log").write_text(f"{LIFE}\n{OOM}\n{LIFE}\n{HYDRA}\n")
    assert [match["id"] for match in read(attempt)["found"]] == ["hydra"]


def test_a_long_log_is_read_at_both_ends(attempt: Path) -> None:
    (attempt / "output.log").write_text(
        f"{HYDRA}\n" + "x" * 99 + "\n" * 1 + ("y" * 99 + "\n") * 50_000 + f"{OOM}\n"
    )
    answer = read(attempt, max_bytes=2 * 2**20)
    found = {match["id"]: match["line"] for match in answer["found"]}
    assert found["hydra"] == 1 and found["torch_cuda_oom"] is None and answer["unread"] > 0


def test_no_time_left_means_unread_and_no_error(attempt: Path) -> None:
    (attempt / "output.log").write_text(f"{OOM}\n")
    answer = read(attempt, seconds=-1)
    assert answer["found"] == [] and answer["unread"] > 0


def test_several_logs_are_read_in_the_order_in_which_they_are_asked_for(attempt: Path) -> None:
    (attempt / "ray_nodes").mkdir()
    (attempt / "ray_nodes" / "n1.log").write_text(f"{OOM}\n")
    (attempt / "output.log").write_text(f"{HYDRA}\n")
    found = read(attempt, f"{attempt}/output.log", f"{attempt}/ray_nodes/*.log", f"{attempt}/none.log")[
        "found"
    ]
    assert {match["id"]: match["order"] for match in found if match["id"] != "python"} == {
        "hydra": 0,
        "torch_cuda_oom": 1,
    }


def test_a_ray_workers_address_becomes_its_nodes_name(attempt: Path) -> None:
    (attempt / "cluster.json").write_text(json.dumps({"nodes": [{"name": "n2", "ip": "10.1.0.2"}]}))
    (attempt / "output.log").write_text(f"\x1b[36m(WorkerDict pid=42, ip=10.1.0.2)\x1b[0m {OOM}\n")
    [match] = [m for m in read(attempt, addresses=f"{attempt}/cluster.json")["found"] if m["id"] != "python"]
    assert match["node"] == "n2"


def test_nothing_that_looks_like_a_token_leaves_the_cluster(attempt: Path) -> None:
    line = (
        "ValueError: Authorization: Bearer abcdefgh12345 of hf_AbCdEfGh1234567890 " + "0123456789abcdef" * 3
    )
    (attempt / "output.log").write_text(f"{line}\n")
    told = json.dumps(read(attempt))
    assert "ValueError" in told
    for secret in ("abcdefgh12345", "hf_AbCd", "0123456789abcdef0123"):
        assert secret not in told


def shards(folder: Path, processes: int = 2) -> None:
    folder.mkdir(parents=True)
    (folder / "fsdp_config.json").write_text(json.dumps({"world_size": processes}))
    for kind in ("model", "optim", "extra_state"):
        for rank in range(processes):
            whole(folder / f"{kind}_world_size_{processes}_rank_{rank}.pt")


def whole(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "x")


def checkpoint(root: Path, step: int, *parts: str) -> Path:
    folder = root / f"global_step_{step}"
    for part in parts or (".",):
        shards(folder / part) if part != "." else shards(folder)
    whole(folder / ("data.pt" if parts else "data_0.pt"))
    return folder


def test_the_newest_complete_checkpoint_is_found_for_sft_and_ppo(tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    (checkpoint(tmp_path, 10) / "optim_world_size_2_rank_1.pt").unlink()
    cut = checkpoint(tmp_path, 15) / "model_world_size_2_rank_0.pt"
    cut.write_bytes(cut.read_bytes()[:-20])
    assert evidence.checkpoints(str(tmp_path), None)["now"]["step"] == 5
    checkpoint(tmp_path, 20, "actor", "critic")
    (checkpoint(tmp_path, 25, "actor", "critic") / "critic" / "fsdp_config.json").unlink()
    shutil.rmtree(checkpoint(tmp_path, 30, "actor", "critic") / "actor")
    checkpoint(tmp_path, 35, "actor")
    assert evidence.checkpoints(str(tmp_path), None)["now"]["step"] == 20


def test_what_was_there_before_the_attempt_began_is_told_apart(tmp_path: Path) -> None:
    old = checkpoint(tmp_path, 5)
    for path in [*old.iterdir()]:
        os.utime(path, (1000, 1000))
    checkpoint(tmp_path, 10)
    found = evidence.checkpoints(str(tmp_path), 2000)
    assert (found["now"]["step"], found["before"]["step"]) == (10, 5)


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    answer = read(tmp_path / "gone", checkpoints=str(tmp_path / "none"))
    assert answer["found"] == [] and answer["checkpoints"] == {"now": None, "before": None}
    assert answer["space"]["free"] > 0 and answer["space"]["full"] == ""


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.ENOSPC])
def test_a_workspace_that_takes_no_more_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """No quota can be had of the kernels that these tests run on: what it says is put into fsync's mouth."""

    def refuse(number: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    assert evidence.space(str(tmp_path))["full"] == os.strerror(code)


def test_every_excerpt_has_one_of_its_signatures_words() -> None:
    """Lines without them are not searched."""
    for signature in TABLE:
        words = words_of(signature.seen)
        assert words and any(word in signature.excerpt for word in words), signature.id


def test_lines_that_are_here_already_are_searched_too() -> None:
    assert [match.id for match in in_lines(["fine", HYDRA])] == ["hydra"]


def test_the_helper_keeps_to_what_old_pythons_know() -> None:
    source = (Path(__file__).resolve().parents[2] / "include" / "login" / "evidence.py").read_text()
    assert "from __future__" not in source and ":=" not in source and sys.version_info >= (3, 10)
