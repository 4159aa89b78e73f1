"""Detection of Ray jobs that can never start."""

from __future__ import annotations

from typing import Any

from llm_bridge.ray.schedulability import can_fit, cannot_start


class Cluster:
    """Answers of Ray's state API."""

    def __init__(self, requested: dict[str, float], *nodes: dict[str, float]) -> None:
        self.requested, self.has = requested, nodes

    async def requested_resources(self, submission_id: str) -> dict[str, float]:
        return self.requested

    async def nodes(self) -> list[dict[str, Any]]:
        return [{"node_name": f"n{i}", "resources_total": has} for i, has in enumerate(self.has, 1)]


async def reason(*args: dict[str, float]) -> str | None:
    return await cannot_start(Cluster(*args), "j")  # type: ignore[arg-type]


async def test_a_job_that_requests_more_than_any_one_node_has_cannot_start() -> None:
    text = await reason(
        {"GPU": 9.0, "memory": 2**32}, {"GPU": 8.0, "memory": 2**33, "CPU": 4.0}, {"CPU": 64.0}
    )
    assert text is not None
    assert text.startswith(
        "it requests GPU 9, memory 4.0 GiB on one node, and no node of its Ray cluster has that: "
    )
    assert "n1 GPU 8, memory 8.0 GiB, n2 GPU 0, memory 0.0 GiB" in text and "entrypoint_num_gpus" in text


async def test_a_job_that_fits_on_a_node_or_requests_nothing_may_start() -> None:
    assert await reason({"GPU": 8.0}, {"CPU": 1.0}, {"GPU": 8.0}) is None
    assert await reason({}, {"CPU": 1.0}) is None


async def test_of_many_nodes_only_some_are_listed() -> None:
    text = await reason({"GPU": 9.0}, *[{"GPU": 8.0}] * 20)
    assert text is not None and "n8" not in text.split("and 12 more")[1] and "and 12 more" in text


def test_all_requested_resources_have_to_be_on_the_same_node() -> None:
    assert not can_fit({"GPU": 1, "fast": 1}, {"GPU": 1})
    assert can_fit({"GPU": 1, "fast": 1}, {"GPU": 8, "fast": 1})
