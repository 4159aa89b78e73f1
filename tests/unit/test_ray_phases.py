"""The phases of a Ray cluster's start, as the log and the run's summary tell them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.ray.phases import seconds, told
from llm_bridge.summary import SummaryOperator

# As `cluster.json` has them; JSON keeps no order that one could count on.
PHASES = {
    "verified": 107.06,
    "allocated": 100.0,
    "environment": 100.4,
    "head_up": 104.0,
    "workers_joined": 107.0,
}


def test_each_phase_is_told_with_the_seconds_since_the_one_before() -> None:
    assert seconds(PHASES) == {"environment": 0.4, "head_up": 3.6, "workers_joined": 3.0, "verified": 0.1}
    assert told(PHASES) == (
        "ready 7.1 s after its nodes were allocated: "
        "environment 0.4 s, head up 3.6 s, workers joined 3.0 s, verified 0.1 s"
    )


def test_a_run_without_a_ray_cluster_has_no_phases() -> None:
    assert seconds({}) == {}


def test_the_summary_of_a_run_tells_them(include: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (include / "clusters" / "here.yaml").write_text("ssh_conn_id: null\nworkspace: /w\ngpus_per_node: 8\n")
    pulled = {"check": {"cluster": "here"}, "ppo.ray_up": {"result": {"phases": PHASES}}}
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="d",
        run_id="r",
        xcom_pull=lambda task_ids, key="return_value": (
            pulled.get(task_ids) if key == "return_value" else None
        ),
        xcom_push=lambda key, value: pushed.__setitem__(key, value),
        get_task_states=lambda **which: {"r": dict.fromkeys(which["task_ids"], "success")},
    )
    SummaryOperator(task_id="summary").execute({"ti": ti})  # type: ignore[typeddict-item]
    assert pushed["summary"]["ray_phases_s"] == seconds(PHASES)
    assert f"ray cluster: {told(PHASES)}" in capsys.readouterr().out
