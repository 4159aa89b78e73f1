"""Slurm job of a Ray cluster that the waiting task starts again."""

from __future__ import annotations

from llm_bridge.ray.recovery import recovery_job
from llm_bridge.slurm.spec import Resources, SlurmJob


def test_the_cluster_starts_again_in_a_stage_directory_of_its_own() -> None:
    cluster = SlurmJob(
        cluster="local", script="#!/bin/sh\n", directory="/w/r/cluster", resources=Resources(nodes=2)
    )
    again = recovery_job(cluster)
    assert again.directory == "/w/r/cluster/recovery" and cluster.directory == "/w/r/cluster"
    assert again == cluster.model_copy(update={"directory": again.directory})
