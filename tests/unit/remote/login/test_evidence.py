"""What the helper `evidence` reads of logs and checkpoints."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.diagnosis.classes import Action
from llm_bridge.diagnosis.evidence import Evidence, LogLocation, in_lines, request, with_answer
from llm_bridge.diagnosis.progress_ledger import ProgressLedger
from llm_bridge.diagnosis.retry import RetryContext, decide
from llm_bridge.diagnosis.rules import diagnose
from llm_bridge.diagnosis.signatures import BY_ID, TABLE
from llm_bridge.remote import attempt_dir
from llm_bridge.remote.login import evidence
from llm_bridge.remote.messages import EvidenceAnswer, decode, encode
from llm_bridge.slurm.status import JobInfo
from testing.paths import PLUGINS

PREFIX_OUTPUT = PLUGINS / "llm_bridge" / "remote" / "templates" / attempt_dir.PREFIX_OUTPUT
OOM = BY_ID["torch_cuda_oom"].excerpt
HYDRA = BY_ID["hydra"].excerpt
LIFE = "[llm-bridge] llmb-t-12-1: Slurm job 12 on n1"


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    folder = tmp_path / "attempt-1"
    folder.mkdir()
    (folder / "settings.json").write_text("{}")
    return folder


def read(attempt: Path, *logs: str, **changes: Any) -> EvidenceAnswer:
    location = LogLocation("test", "12", str(attempt), logs or (f"{attempt}/output.log",))
    asked = encode(request(location, None)._replace(**changes))
    answer: EvidenceAnswer = decode(
        EvidenceAnswer, json.loads(json.dumps(evidence.main(json.loads(json.dumps(asked)))))
    )
    return answer


def test_the_first_match_of_each_signature_is_reported_with_its_line(attempt: Path) -> None:
    (attempt / "output.log").write_text(f"{LIFE}\nfine\n{OOM}\nother\n{OOM}\n{HYDRA}\n")
    found = {match.id: match.line for match in read(attempt).found}
    assert (found["torch_cuda_oom"], found["hydra"]) == (3, 6)


def test_the_output_before_a_requeue_by_slurm_does_not_count(attempt: Path) -> None:
    (attempt / "output.log").write_text(f"{LIFE}\n{OOM}\n{LIFE}\n{HYDRA}\n")
    assert [match.id for match in read(attempt).found] == ["hydra"]


def test_a_long_log_is_read_at_both_ends(attempt: Path) -> None:
    (attempt / "output.log").write_text(
        f"{HYDRA}\n" + "x" * 99 + "\n" * 1 + ("y" * 99 + "\n") * 50_000 + f"{OOM}\n"
    )
    answer = read(attempt, max_bytes=2 * 2**20)
    found = {match.id: match.line for match in answer.found}
    assert found["hydra"] == 1 and found["torch_cuda_oom"] is None and answer.unread > 0


def test_no_time_left_means_unread_and_no_error(attempt: Path) -> None:
    (attempt / "output.log").write_text(f"{OOM}\n")
    answer = read(attempt, seconds=-1)
    assert answer.found == [] and answer.unread > 0


def test_several_logs_are_read_in_the_order_of_the_request(attempt: Path) -> None:
    (attempt / "ray_nodes").mkdir()
    (attempt / "ray_nodes" / "n1.log").write_text(f"{OOM}\n")
    (attempt / "output.log").write_text(f"{HYDRA}\n")
    found = read(attempt, f"{attempt}/output.log", f"{attempt}/ray_nodes/*.log", f"{attempt}/none.log").found
    assert {match.id: match.order for match in found if match.id != "python"} == {
        "hydra": 0,
        "torch_cuda_oom": 1,
    }


def test_a_ray_workers_address_becomes_its_nodes_name(attempt: Path) -> None:
    (attempt / "cluster.json").write_text(json.dumps({"nodes": [{"name": "n2", "ip": "10.1.0.2"}]}))
    (attempt / "output.log").write_text(f"\x1b[36m(WorkerDict pid=42, ip=10.1.0.2)\x1b[0m {OOM}\n")
    [match] = [m for m in read(attempt, addresses=f"{attempt}/cluster.json").found if m.id != "python"]
    assert match.node == "n2"


def test_a_ray_worker_without_a_name_yet_is_a_prefix_too() -> None:
    line = "(pid=42, ip=10.1.0.2) ModuleNotFoundError: No module named 'flash_attn'"
    expected = ("ModuleNotFoundError: No module named 'flash_attn'", "10.1.0.2")
    assert evidence.split_prefix(line) == expected
    assert evidence.split_prefix(f"[n1] {line}", ["n1"]) == (expected[0], "n1")
    assert evidence.split_prefix("(pid=42) text") == ("text", None)


def test_the_prefixes_of_vllms_processes_and_errors_are_removed() -> None:
    error = "ERROR 11-28 05:19:02 [multiproc_executor.py:898] "
    line = f"(vLLMHttpServer pid=48, ip=10.1.0.2) (Worker_TP0 pid=54) {error}{OOM}"
    assert evidence.split_prefix(line) == (OOM, "10.1.0.2")
    # A warning of the same logger is not the cause of a failure.
    warning = "WARNING 11-28 05:19:02 [cuda.py:45] Failed to import from vllm._C"
    assert evidence.split_prefix(f"(EngineCore pid=53) {warning}") == (warning, None)


def test_a_line_whose_end_comes_after_a_progress_bars_next_state_is_found(attempt: Path) -> None:
    (attempt / "cluster.json").write_text(json.dumps({"nodes": [{"name": "n2", "ip": "10.1.0.2"}]}))
    worker = "(WorkerDict pid=42, ip=10.1.0.2)"
    (attempt / "output.log").write_text(f"\r 5%|  | 1/20\r{worker} {OOM}\r 10%|  | 2/20 [00:02<00:18]\n")
    [match] = [m for m in read(attempt, addresses=f"{attempt}/cluster.json").found if m.id != "python"]
    assert (match.text, match.node, match.line) == (OOM, "n2", 1)


@pytest.fixture
def printed(attempt: Path) -> Path:
    """An attempt on gpu95 and gpu96, where gpu96 printed all excerpts, through the real prefix_output.sh."""
    excerpts = attempt / "excerpts"
    excerpts.write_text("".join(f"{signature.excerpt}\n" for signature in TABLE))
    said = subprocess.run(
        ["bash", PREFIX_OUTPUT, "cat", excerpts],
        env={**os.environ, "SLURMD_NODENAME": "gpu96"},
        capture_output=True,
        text=True,
        check=True,
    )
    (attempt / "output.log").write_text(
        f"[llm-bridge] llmb-t-12-1: Slurm job 12 on gpu[95-96]\n{said.stdout}"
    )
    return attempt


def test_every_signature_is_found_in_prefixed_output(printed: Path) -> None:
    assert {match.id for match in read(printed).found} == set(BY_ID)


def test_the_node_that_prints_a_line_is_reported_unless_the_line_names_another(printed: Path) -> None:
    nodes = {match.id: match.node for match in read(printed).found}
    for name in ("ecc", "gpu_lost", "torch_cuda_oom", "python_import", "no_space", "killed"):
        assert nodes[name] == "gpu96", name
    # The remaining ones report a lost connection or node.
    for name in ("nccl_watchdog", "nccl_remote", "gloo_peer", "nccl_peer", "store_gone", "slurm_node_cancel"):
        assert nodes[name] is None, name
    assert nodes["nccl_transport"] == "gpu95", "NCCL's own prefix names the node"


def test_the_node_of_a_failed_gpu_is_excluded_and_its_neighbour_is_not(attempt: Path) -> None:
    life = "[llm-bridge] llmb-t-12-1: Slurm job 12 on gpu[95-96]\n"
    watchdog, ecc = BY_ID["nccl_watchdog"].excerpt, BY_ID["ecc"].excerpt
    for text, nodes in (
        (f"{life}[gpu95] {watchdog}\n[gpu96] {ecc}\n", ("gpu96",)),
        (f"{life}[gpu95] {watchdog}\n", ()),
        (f"{life}[gpu97] {ecc}\n", ()),  # none of the job's
        (f"[gpu97] {ecc}\n", ()),  # its nodes are unknown
    ):
        (attempt / "output.log").write_text(text)
        info = JobInfo("12", "FAILED", exit_code=1, nodes="gpu[95-96]")
        found = diagnose(with_answer(Evidence(job_id="12", info=info), read(attempt), ()))
        assert decide(found, ProgressLedger(), RetryContext()).nodes == nodes, text


def test_a_missing_module_stops_a_training_on_several_nodes_at_once(attempt: Path) -> None:
    (attempt / "output.log").write_text(
        "[llm-bridge] llmb-t-12-1: Slurm job 12 on gpu[95-96]\n"
        "[gpu96] Traceback (most recent call last):\n[gpu96] ModuleNotFoundError: No module named 'flash_attn'\n"
    )
    info = JobInfo("12", "FAILED", exit_code=1, nodes="gpu[95-96]")
    found = diagnose(with_answer(Evidence(job_id="12", info=info), read(attempt), ()))
    assert (found.kind, found.node) == ("environment", "gpu96")
    assert decide(found, ProgressLedger(), RetryContext()).action is Action.STOP


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("n1", ["n1"]),
        ("gpu[008-010,12],login-1", ["gpu008", "gpu009", "gpu010", "gpu12", "login-1"]),
        ("a[1-2]b[3,4]-ib", ["a1b3-ib", "a1b4-ib", "a2b3-ib", "a2b4-ib"]),
        ("", []),
    ],
)
def test_slurms_short_form_of_node_names_is_expanded(short: str, names: list[str]) -> None:
    assert evidence.hosts(short) == names


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
    newest, _ = evidence.checkpoints(str(tmp_path), None)
    assert newest is not None and newest.step == 5
    checkpoint(tmp_path, 20, "actor", "critic")
    (checkpoint(tmp_path, 25, "actor", "critic") / "critic" / "fsdp_config.json").unlink()
    shutil.rmtree(checkpoint(tmp_path, 30, "actor", "critic") / "actor")
    checkpoint(tmp_path, 35, "actor")
    newest, _ = evidence.checkpoints(str(tmp_path), None)
    assert newest is not None and newest.step == 20


def test_files_from_before_the_attempt_are_distinguished(tmp_path: Path) -> None:
    old = checkpoint(tmp_path, 5)
    for path in [*old.iterdir()]:
        os.utime(path, (1000, 1000))
    checkpoint(tmp_path, 10)
    newest, before = evidence.checkpoints(str(tmp_path), 2000)
    assert newest is not None and before is not None
    assert (newest.step, before.step) == (10, 5)


def test_a_folder_that_does_not_exist_is_no_error(tmp_path: Path) -> None:
    answer = read(tmp_path / "gone", checkpoints=str(tmp_path / "none"))
    assert answer.found == [] and (answer.newest, answer.newest_before) == (None, None)
    assert (answer.free_bytes or 0) > 0 and answer.full == ""


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.ENOSPC])
def test_a_full_workspace_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The kernels that run these tests have no quotas: fsync is patched to raise the quota's error."""

    def refuse(number: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    assert evidence.space(str(tmp_path))[2] == os.strerror(code)


def test_lines_that_airflow_has_already_lose_the_same_prefix_and_blame_the_same_node() -> None:
    [match] = in_lines([f"[gpu96] {HYDRA}"], node_list="gpu[95-96]")
    assert (match.id, match.node, match.text) == ("hydra", "gpu96", HYDRA)
