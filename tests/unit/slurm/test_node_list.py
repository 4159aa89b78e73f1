"""Slurm's node lists."""

from __future__ import annotations

import pytest

from llm_bridge.slurm.node_list import count_nodes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("n1", 1),
        ("n1,n2", 2),
        ("gpu[94-95]", 2),
        ("gpu[094-096,101],osk-gpu94,a1-b2c", 6),
        ("rack[1-2]-n[01-04]", 8),
        ("/shared/nodes.txt", 0),
    ],
)
def test_the_nodes_of_a_list_are_counted(text: str, count: int) -> None:
    assert count_nodes(text) == count
