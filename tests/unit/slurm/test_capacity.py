"""Nodes of a partition for one job: too few for ever, or too few in service now."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.slurm import capacity
from llm_bridge.slurm.capacity import Capacity, TooLarge
from llm_bridge.slurm.spec import ResolvedJob, SlurmJob

# From `sinfo -h -N -o "%P|%N|%t|%c|%m|%G|%f|%E"` of Slurm 22.05.
SINFO = """\
gpu*|g1|idle|64|512000|gpu:h100:8(S:0-1)|h100,ib|none
gpu*|g2|mix|64|512000|gpu:h100:8(S:0-1)|h100,ib|none
gpu*|g3|drain|64|512000|gpu:h100:8(S:0-1)|h100,ib|bad|fan
gpu*|g4|idle*|32|256000|gpu:a100:4|a100|Not responding
cpu|c1|down|16|64000|(null)|(null)|Not responding
"""


def job(**changes: Any) -> ResolvedJob:
    resources = {"nodes": 3, "gpus_per_node": 8, **changes}
    spec = SlurmJob(cluster="here", directory="/w/t", script="#!/bin/sh\n", resources=resources)  # type: ignore[arg-type]
    return spec.resolve(Cluster(name="here", ssh_conn_id=None, workspace="/w", gpus_per_node=8))


def test_drained_nodes_are_configured_but_out_of_service_with_their_reason() -> None:
    found = capacity.measure(job(), SINFO)
    sizes = ("64 CPUs, 512000 MiB, gpu:h100:8(S:0-1)", "32 CPUs, 256000 MiB, gpu:a100:4")
    assert found == Capacity("gpu", 3, 2, ("g3 (drain, bad|fan)",), sizes)


@pytest.mark.parametrize(
    ("request_", "configured", "in_service"),
    [
        ({"gpus_per_node": 4}, 4, 2),
        ({"gpus_per_node": 9}, 0, 0),
        ({"cpus_per_task": 65}, 0, 0),
        ({"cpus_per_task": 33}, 3, 2),
        ({"mem": "500G"}, 3, 2),
        ({"mem": "600G"}, 0, 0),
        ({"mem": "0"}, 3, 2),
        ({"gpus_per_node": 4, "constraint": "a100"}, 1, 0),
        ({"constraint": "h100&ib"}, 3, 2),
        ({"constraint": "h100|a100"}, 3, 2),
        ({"partition": "cpu", "gpus_per_node": 0}, 4, 2),
    ],
)
def test_only_nodes_that_fit_the_job_count(
    request_: dict[str, Any], configured: int, in_service: int
) -> None:
    found = capacity.measure(job(**request_), SINFO)
    assert found and (found.configured, found.in_service) == (configured, in_service)


@pytest.mark.parametrize(
    "gres", ["gpu:8", "gpu:8(S:0-1)", "gpu:(null):8(S:0-1)", "gpu:(null):8", "craynetwork:4,gpu:a100_80g.x:8"]
)
def test_gpus_of_every_notation_count(gres: str) -> None:
    rows = SINFO.replace("gpu:h100:8(S:0-1)", gres)
    found = capacity.measure(job(), rows)
    assert found and (found.configured, found.in_service) == (3, 2)
    found = capacity.measure(job(gpus_per_node=9), rows)
    assert found and found.configured == 0


def test_excluded_nodes_do_not_count() -> None:
    found = capacity.measure(job(), SINFO, ["g1"])
    assert found and (found.configured, found.in_service) == (2, 1)


def test_without_a_partition_the_default_one_counts() -> None:
    assert capacity.measure(job(), SINFO.replace("*|g", "|g")) is None
    assert capacity.measure(job(), "Welcome!\n") is None


def test_partition_and_nodelist_are_left_to_sinfo() -> None:
    argv = capacity.argv(job(partition="gpu", nodelist="g[1-3]"))
    assert argv[-4:] == ["-p", "gpu", "-n", "g[1-3]"]


def test_sizes_that_no_node_of_any_partition_has_are_found() -> None:
    assert capacity.too_large(job(cpus_per_task=65, gpus_per_node=9, partition="nowhere"), SINFO) == [
        TooLarge("cpus_per_task", 65, "64 CPUs"),
        TooLarge("gpus_per_node", 9, "8 GPUs"),
    ]
    assert capacity.too_large(job(cpus_per_task=64, gpus_per_node=8, partition="cpu"), SINFO) == []


def test_nothing_is_too_large_where_the_nodes_sizes_are_unknown() -> None:
    without_gpus = "cpu*|c1|idle|n/a|64000|(null)|(null)|none\n"
    assert capacity.too_large(job(cpus_per_task=65), without_gpus) == []
    assert capacity.too_large(job(cpus_per_task=65), "") == []
