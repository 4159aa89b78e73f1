"""Partitions of a site in sinfo's output."""

from __future__ import annotations

import pytest

from llm_bridge.slurm import inventory

OUTPUT = """\
module: a greeting
gpu|g1|idle|96|1031000|gpu:h100:8(S:0-1)|h100,nvlink|none
gpu|g2|idle|64|515000|gpu:h100:8(S:0-1)|h100|none
mixed|m1|idle|32|257000|gpu:a100:2,gpu:v100:2|(null)|none
nameless|x1|idle|32|257000|gpu:(null):4(S:0-1)|(null)|none
cpu*|c1|down*|64|257000|(null)|(null)|Not|responding
"""


def test_a_partition_has_the_size_of_its_smallest_node_and_the_gpus_of_most() -> None:
    gpu, mixed, nameless, cpu = inventory.partitions(OUTPUT)
    assert (gpu.name, gpu.default, gpu.nodes, gpu.cpus, gpu.memory_gib, gpu.gpus) == (
        "gpu",
        False,
        2,
        64,
        502,
        8,
    )
    assert gpu.types == ("h100",) and gpu.features == ("h100", "nvlink")
    assert (mixed.gpus, mixed.types) == (4, ("a100", "v100"))
    assert (nameless.gpus, nameless.types) == (4, ())
    assert (cpu.name, cpu.default, cpu.gpus, cpu.gres) == ("cpu", True, 0, "")


def test_trainings_get_the_partition_with_gpus_and_small_jobs_one_without() -> None:
    found = inventory.partitions(OUTPUT)
    training, small = inventory.for_trainings(found), inventory.for_small_jobs(found)
    assert training and training.name == "gpu" and small and small.name == "cpu"
    assert inventory.for_trainings([]) is None and inventory.for_small_jobs(found[:2]) is None


@pytest.mark.parametrize(
    ("gres", "gpus", "types"),
    [
        ("gpu:8", 8, ()),
        ("gpu:2080ti:8(S:0-1)", 8, ("2080ti",)),
        ("gpu:4090:4", 4, ("4090",)),
        ("gpu:1g.5gb:7,gpu:3g.20gb:2(S:0)", 9, ("1g.5gb", "3g.20gb")),
        ("gpu:nvidia_a100_80gb_pcie:4(S:0-1),shard:40", 4, ("nvidia_a100_80gb_pcie",)),
        ("craynetwork:4,gpu:(null):4", 4, ()),
    ],
)
def test_types_of_gpus_may_begin_with_a_digit(gres: str, gpus: int, types: tuple[str, ...]) -> None:
    [found] = inventory.partitions(f"gpu|g1|idle|96|1031000|{gres}|(null)|none\n")
    assert (found.gpus, found.types) == (gpus, types)
