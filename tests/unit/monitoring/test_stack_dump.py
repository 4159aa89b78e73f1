"""Stack dump of a hanging job."""

from __future__ import annotations

from llm_bridge.monitoring.stack_dump import MIN_LINES_PER_NODE, _limit_by_node


def test_a_stack_dump_of_many_nodes_has_lines_of_each() -> None:
    lines = [f"n{node}: line {line}" for line in range(50) for node in range(60)]
    shown = _limit_by_node(lines)
    assert {line.split(":")[0] for line in shown} == {f"n{node}" for node in range(60)}
    assert len(shown) == 60 * MIN_LINES_PER_NODE and shown[0] == "n0: line 0"
