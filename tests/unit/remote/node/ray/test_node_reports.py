"""What nodes say of themselves."""

from __future__ import annotations

from pathlib import Path

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.ray.node_reports import NodeReports


def test_reports_of_nodes_are_read_back_and_half_written_ones_left_out(tmp_path: Path) -> None:
    reports = NodeReports(tmp_path)
    assert reports.read() == {}
    reports.write("gpu-1.site.org", {"state": "running", "message": ""})
    (tmp_path / attempt_dir.RAY_NODES / attempt_dir.node_report("n9")).write_text("{")
    assert list(reports.read()) == ["gpu-1.site.org"]
