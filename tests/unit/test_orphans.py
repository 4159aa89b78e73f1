"""The sweep at a site that has cluster files of others: tests/operators has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from llm_bridge.orphans import ReapOrphansOperator


def test_a_cluster_without_a_connection_is_left_out(include: Path) -> None:
    (include / "clusters" / "theirs.yaml").write_text(
        "ssh_conn_id: nowhere\nworkspace: /w\ngpus_per_node: 8\n"
    )
    with pytest.raises(AirflowSkipException, match="theirs is left out: Airflow has no connection 'nowhere'"):
        ReapOrphansOperator(task_id="theirs", cluster="theirs").execute({"ti": None})
