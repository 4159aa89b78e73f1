"""One node of a Ray cluster: its reports, whatever happens to Ray; tests/ray starts real clusters."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.ray import node_agent, supervise
from llm_bridge.remote.node.ray.node_agent import Node
from llm_bridge.remote.node.ray.node_setup import NodeProblem
from llm_bridge.remote.node.ray.supervise import Stopped


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(supervise, "end_children", lambda grace: None)
    monkeypatch.setattr(supervise, "ignore_stop_signals", lambda: None)
    (tmp_path / attempt_dir.SETTINGS).write_text(json.dumps({"ready_minutes": 1, "gpus_per_node": 8}))
    (tmp_path / attempt_dir.RAY_NODES).mkdir()
    return Node("n2", Namespace(head="n1", head_ip="10.0.0.1", block=12_000), tmp_path)


def report(node: Node) -> dict[str, object]:
    path = node.attempt / attempt_dir.RAY_NODES / attempt_dir.node_report(node.name)
    values: dict[str, object] = json.loads(path.read_text())
    return values


def test_a_node_that_is_not_the_head_joins_the_gcs_of_the_head(node: Node) -> None:
    assert not node.is_head and node.gcs == "10.0.0.1:12000"


def test_a_problem_of_the_node_is_its_report_and_an_error(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_ray(self: Node) -> int:
        raise NodeProblem("has 0 of 8 GPUs")

    monkeypatch.setattr(Node, "start_ray", start_ray)
    assert node_agent.run(node) == 1
    assert (report(node)["state"], report(node)["message"]) == ("failed", "has 0 of 8 GPUs")


def test_rays_end_is_a_failure_with_its_cause(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_ray(self: Node) -> int:
        self.log.write_text("ValueError: bad port\n")
        return 7

    monkeypatch.setattr(Node, "start_ray", start_ray)
    monkeypatch.setattr(supervise, "wait_for", lambda pid: pid + 2)
    assert node_agent.run(node) == 1
    message = str(report(node)["message"])
    assert message.startswith("Ray ended with exit code 9: ValueError: bad port") and str(node.log) in message


def test_the_failed_check_of_a_raylet_is_in_the_report(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_ray(self: Node) -> int:
        self.folder = tmp_path / "disk"
        assert self.ray_logs
        self.ray_logs.mkdir(parents=True)
        (self.ray_logs / "raylet.err").write_text("Check failed: server_ Failed to start the grpc server\n")
        self.log.write_text("RayletEnded: the raylet ended during startup\n")
        return 1

    monkeypatch.setattr(Node, "start_ray", start_ray)
    monkeypatch.setattr(supervise, "wait_for", lambda pid: pid)
    assert node_agent.run(node) == 1
    assert "exit code 1: raylet.err: server_ Failed to start the grpc server" in str(report(node)["message"])


def test_a_stopped_node_has_not_failed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_ray(self: Node) -> int:
        raise Stopped("SIGTERM")

    monkeypatch.setattr(Node, "start_ray", start_ray)
    assert node_agent.run(node) == 0
    assert (report(node)["state"], report(node)["message"]) == ("stopped", "was stopped (SIGTERM)")


def test_the_folder_on_the_nodes_disk_is_removed_and_its_logs_are_kept(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_ray(self: Node) -> int:
        self.folder = tmp_path / "disk" / "7"
        logs = self.folder / "ray" / "session_latest" / "logs"
        logs.mkdir(parents=True)
        (logs / "raylet.out").write_text("end")
        raise Stopped("SIGTERM")

    monkeypatch.setattr(Node, "start_ray", start_ray)
    node_agent.run(node)
    assert not (tmp_path / "disk" / "7").exists()
    assert (tmp_path / attempt_dir.RAY_LOGS / "n2" / "raylet.out").read_text() == "end"


def test_a_head_that_does_not_answer_in_time_is_a_problem_of_the_network(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_agent.network, "answers", lambda address: False)
    monkeypatch.setattr(node_agent, "HEAD_POLL_INTERVAL_SECONDS", 0.0)
    with pytest.raises(NodeProblem, match=r"cannot reach the head's GCS at 10\.0\.0\.1:12000"):
        node._wait_for_head(deadline=0.0)
