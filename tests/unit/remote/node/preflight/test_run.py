"""Verdict of preflight on the nodes' reports."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.preflight import checks, network_test, run


@pytest.mark.parametrize(
    ("unreached", "blamed"),
    [
        ({"n1": [], "n2": [], "n3": []}, []),
        ({"n1": ["n2"], "n2": [], "n3": ["n2"]}, ["n2"]),  # n2 is unreachable for all
        ({"n1": [], "n2": ["n1", "n3"], "n3": []}, ["n2"]),  # it does not get out
        ({"n1": ["n2"], "n2": ["n1"]}, ["n1", "n2"]),  # with two nodes the faulty one is unknown
    ],
)
def test_the_node_that_most_others_do_not_reach_is_blamed(
    unreached: dict[str, list[str]], blamed: list[str]
) -> None:
    reports = {node: {"unreached": others} for node, others in unreached.items()}
    assert sorted(run.unreachable(reports)) == blamed


def test_one_bad_node_is_named_for_exclusion_but_not_all_nodes_with_one_fault(tmp_path: Path) -> None:
    assert run.verdict(tmp_path, {}) == 0
    assert run.verdict(tmp_path, {"n2": ["its disk is full"]}) == 1
    reason = json.loads((tmp_path / attempt_dir.REASON).read_text())
    assert reason["nodes"] == ["n2"] and reason["reason"] == "preflight: n2: its disk is full"
    run.verdict(tmp_path, {"n1": ["no such interface"], "n2": ["no such interface"]})
    assert json.loads((tmp_path / attempt_dir.REASON).read_text())["nodes"] == []


def test_reports_from_before_a_requeue_do_not_count(tmp_path: Path) -> None:
    run.Reports(tmp_path, ["n1", "n2"], "7.0").write("n2", "alone", {"problems": []})
    again = run.Reports(tmp_path, ["n1", "n2"], "7.1")
    again.write("n1", "alone", {"problems": []})
    assert list(again.wait_for("alone", 0.3)) == ["n1"]


def preflight(
    monkeypatch: pytest.MonkeyPatch, attempt: Path, nodes: list[str], **wanted: object
) -> run.Preflight:
    """Preflight of the first of some nodes."""
    for name, value in {
        "LLM_BRIDGE_NODES": " ".join(nodes),
        "SLURMD_NODENAME": nodes[0],
        "SLURM_JOB_ID": "7",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    return run.Preflight({"preflight": wanted}, attempt)


def test_a_node_that_reaches_no_other_reports_before_the_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [f"n{number}" for number in range(33)]
    first = preflight(monkeypatch, tmp_path, nodes)
    first.seen = {node: {"address": ["10.0.0.9", 7]} for node in nodes}
    for node in nodes[1:]:
        first.reports.write(node, "connections", {"problems": [], "unreached": ["n0"]})
    together = threading.Barrier(32, timeout=60)

    def connects(host: str, port: int) -> bool:
        assert (host, port) == ("10.0.0.9", 7)
        together.wait()  # one after the other, they would never all be here
        return False

    monkeypatch.setattr(checks, "connects", connects)
    assert first.connections() == {"n0": [f"no connection with {' '.join(sorted(nodes[1:]))}"]}


def test_a_node_whose_all_reduce_ends_at_its_limit_is_not_called_silent_by_one_that_failed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = preflight(
        monkeypatch, tmp_path, ["n1", "n2"], all_reduce_seconds=0.1, device="cuda", gpus_per_node=2
    )
    monkeypatch.setattr(network_test, "run", lambda *arguments: (["NCCL error"], None))
    late = threading.Timer(
        0.5, first.reports.write, ("n2", "together", {"problems": ["too late"], "slow": {}})
    )
    late.start()
    assert first.together() == {"n1": ["NCCL error"], "n2": ["too late"]}
