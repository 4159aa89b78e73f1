"""The head guard: host names, and files from before a requeue."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import write_json
from llm_bridge.remote.node.ray import head_guard, node_agent
from llm_bridge.remote.node.ray.node_reports import NodeReports


def report(state: str, message: str = "", at: float = 0.0) -> dict:
    return {"state": state, "message": message, "at": at}


def test_host_names_are_taken_in_slurms_order() -> None:
    assert head_guard.parse_host_names("gpu9\ngpu10\ngpu2\n") == ["gpu9", "gpu10", "gpu2"]
    with pytest.raises(ValueError):
        head_guard.parse_host_names("\n")


def test_files_from_before_a_requeue_are_removed(tmp_path: Path) -> None:
    for name in (attempt_dir.CLUSTER, attempt_dir.REASON, attempt_dir.SETTINGS):
        write_json(tmp_path / name, {})
    NodeReports(tmp_path).write("n1", report("failed"))
    head_guard.remove_stale_files(tmp_path)
    assert [f.name for f in tmp_path.rglob("*.json")] == [attempt_dir.SETTINGS]


def test_the_guard_waits_longer_than_a_node_needs_to_stop_and_less_than_the_shortest_killwait() -> None:
    kill_wait, cleanup = 3.0, 1.0
    assert node_agent.STOP_GRACE_SECONDS + cleanup < head_guard.TERMINATED_STOP_TIMEOUT_SECONDS < kill_wait
