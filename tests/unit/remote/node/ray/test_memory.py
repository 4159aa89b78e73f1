"""What the kernel says of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.remote.node.ray import memory


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/job_7/step_0\n", "job_7/step_0/memory.events"),
        ("5:cpu:/other\n4:memory:/job_7/step_0\n", "memory/job_7/step_0/memory.oom_control"),
    ],
)
def test_processes_that_the_kernel_killed_for_memory_are_counted(tmp_path: Path, own: str, file: str) -> None:
    counter = tmp_path / file
    counter.parent.mkdir(parents=True)
    counter.write_text("low 0\noom 3\noom_kill 2\n")
    assert memory.kills(own, tmp_path) == 2
    counter.write_text("low 0\noom 3\noom_kill 0\n")
    assert memory.kills(own, tmp_path) == 0


def test_without_a_cgroup_nothing_is_said_of_memory(tmp_path: Path) -> None:
    assert memory.kills("0::/job_7\n", tmp_path) == 0
    assert memory.hint("0::/\n") == memory.hint("nonsense") == ""
