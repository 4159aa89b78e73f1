"""The sweep at a site that has cluster files of others: tests/operators has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from llm_bridge.exceptions import ConfigError
from llm_bridge.operators.orphans import ReapOrphansOperator


def test_a_cluster_without_a_connection_is_skipped(include: Path) -> None:
    (include / "clusters" / "theirs.yaml").write_text(
        "ssh_conn_id: nowhere\nworkspace: /w\ngpus_per_node: 8\n"
    )
    with pytest.raises(
        AirflowSkipException, match="cluster theirs skipped: Airflow has no connection 'nowhere'"
    ):
        ReapOrphansOperator(task_id="theirs", cluster="theirs").execute({"ti": None})


@pytest.mark.parametrize("value", ["true", 1, "yes", None])
def test_a_dry_run_that_is_neither_true_nor_false_cancels_nothing(value: object) -> None:
    operator = ReapOrphansOperator(task_id="local", cluster="local", report_only=value)
    with pytest.raises(ConfigError, match="use True or False; nothing was cancelled"):
        operator.execute({"ti": None})
