"""Limits of partitions, accounts and QOS, compared with a cluster file."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.remote.messages import ERROR, OK, WARNING
from llm_bridge.remote.transport import Completed
from llm_bridge.slurm import site_limits
from llm_bridge.slurm.spec import Resources, SlurmJob

PARTITIONS = (
    "PartitionName=gpu AllowGroups=ALL Default=NO MaxNodes=4 MaxTime=1-00:00:00 State=UP TotalNodes=2\n"
    "a wrapper prints this\n"
    "PartitionName=old Default=YES MaxTime=UNLIMITED State=DOWN TotalNodes=9\n"
)


def cluster(**values: Any) -> Cluster:
    given = {"name": "c", "ssh_conn_id": "s", "workspace": "/w", "gpus_per_node": 8}
    return Cluster(**given | values)


async def known() -> dict[str, dict[str, str]]:
    async def run(argv: list[str]) -> Completed:
        return Completed(0, PARTITIONS, "")

    return await site_limits.partitions(run)


async def test_a_partition_is_shown_with_its_limits() -> None:
    [finding] = site_limits.in_partitions(cluster(partition="gpu", time_limit="12:00:00"), await known())
    assert finding.result == OK and finding.detail == "gpu: UP, TotalNodes 2, MaxNodes 4, MaxTime 1-00:00:00"


@pytest.mark.parametrize("limit", ["1-00:00:01", "25:00:00", "1441"])
async def test_a_time_limit_above_the_partitions_is_an_error_with_key_and_fix(limit: str) -> None:
    [finding] = site_limits.in_partitions(cluster(partition="gpu", time_limit=limit), await known())
    assert finding.result == ERROR
    assert finding.detail.startswith(
        f"time_limit {limit} in include/clusters/c.yaml is more than partition gpu"
    )
    assert finding.action == "set time_limit to 1-00:00:00 or less"


@pytest.mark.parametrize(
    ("partition", "limit", "flags", "result"),
    [
        ("gpu", "1-00:00:01", "", ERROR),
        ("gpu", "1-00:00:00", "", None),
        ("gpu", None, "", None),
        (None, "30-00:00:00", "", None),  # the default one has no limit
        ("gpu,old", "2-00:00:00", "", None),
        ("gpu,unknown", "2-00:00:00", "", None),
        ("gpu", "2-00:00:00", "DenyOnLimit,PartitionTimeLimit\n", WARNING),
    ],
)
async def test_a_job_that_slurm_accepts_and_never_starts_for_its_time_limit_is_found(
    partition: str | None, limit: str | None, flags: str, result: str | None
) -> None:
    async def run(argv: list[str]) -> Completed:
        return Completed(0, flags if argv[0] == "sacctmgr" else PARTITIONS, "")

    job = SlurmJob(cluster="c", script="#!/bin/sh\n", directory="/w/d", resources=Resources(time_limit=limit))
    found = await site_limits.beyond_partitions([job.resolve(cluster(partition=partition))], run)
    assert [finding.result for finding in found] == [result] * (result is not None)
    if result:
        assert "PartitionTimeLimit" in found[0].detail and "gpu 1-00:00:00" in found[0].detail
        assert "include/clusters/c.yaml" in found[0].action


async def test_a_partition_that_is_down_is_waited_for() -> None:
    [finding] = site_limits.in_partitions(cluster(), await known())
    assert finding.result == WARNING and finding.detail.startswith("old: DOWN")


async def test_without_a_default_partition_the_key_is_needed() -> None:
    partitions = {"gpu": (await known())["gpu"]}
    [finding] = site_limits.in_partitions(cluster(), partitions)
    assert finding.result == ERROR and "partition in include/clusters/c.yaml is not set" in finding.detail
    assert finding.action == "choose from gpu"


async def test_limits_of_account_and_qos_are_read_from_sacctmgr() -> None:
    answers = {
        "associations": "team7||normal,long|||1-00:00:00||\n",
        "qos": "long|06:00:00||4|||\nother||||||\n",
    }

    async def run(argv: list[str]) -> Completed:
        return Completed(0, answers[argv[4]], "")

    own, qos = await site_limits.associations(run, "ada"), await site_limits.qos(run)
    account, long = site_limits.of_user(cluster(account="TEAM7", time_limit="60"), "ada", own, qos)
    assert account == ("account", OK, "account team7, QOS normal,long, MaxWall 1-00:00:00", "")
    assert long == ("QOS", OK, "long: MaxWall 06:00:00, MaxSubmitJobsPerUser 4", "")
    file = cluster(account="team7", qos="long", time_limit="2-00:00:00")
    wrong = site_limits.of_user(file, "ada", own, qos)
    assert [finding.result for finding in wrong] == [OK, ERROR], "the limit of a QOS replaces the account's"
    assert "QOS long (MaxWall) allows: 06:00:00" in wrong[1].detail


async def test_a_name_that_slurm_does_not_enforce_is_a_warning_with_the_users_own() -> None:
    own = [{"account": "team7", "partition": "", "QOS": "normal,long", "MaxWall": ""}]
    account, qos = site_limits.of_user(cluster(account="nobody", qos="fast"), "ada", own, [])
    assert (account.result, qos.result) == (WARNING, WARNING)
    assert "account in include/clusters/c.yaml: sacctmgr lists no account 'nobody' for ada" in account.detail
    assert account.action == "choose from team7, or delete the key"
    assert qos.action == "choose from long, normal, or delete the key"


async def test_a_site_without_accounting_has_no_limits() -> None:
    async def run(argv: list[str]) -> Completed:
        return Completed(1, "", "sacctmgr: error: accounting storage is disabled")

    assert await site_limits.associations(run, "ada") == []
    assert site_limits.of_user(cluster(), "ada", [], [])[0].result == OK


def association(account: str, partition: str, limit: str) -> dict[str, str]:
    return {"account": account, "partition": partition, "QOS": "normal", "MaxWall": limit}


@pytest.mark.parametrize(
    ("values", "own", "errors"),
    [
        ({"partition": "gpu"}, [("a", "debug", "00:30:00"), ("a", "gpu", "2-00:00:00")], 0),
        ({"partition": "gpu"}, [("a", "", "00:30:00"), ("a", "gpu", "2-00:00:00")], 0),
        ({"partition": "gpu"}, [("a", "gpu", "00:30:00"), ("a", "", "2-00:00:00")], 1),
        ({"partition": "gpu"}, [("a", "", "00:30:00"), ("b", "", "")], 0),
        ({"account": "a"}, [("a", "", "00:30:00"), ("b", "", "")], 1),
        ({}, [("a", "", "00:30:00")], 1),
        ({}, [("a", "debug", "00:30:00")], 0),
    ],
)
def test_a_limit_is_an_error_only_if_it_holds_for_the_cluster_files_jobs(
    values: dict[str, str], own: list[tuple[str, str, str]], errors: int
) -> None:
    rows = [association(*each) for each in own]
    found = site_limits.of_user(cluster(time_limit="1-00:00:00", **values), "ada", rows, [])
    assert [finding.result for finding in found].count(ERROR) == errors
    found = site_limits.of_user(cluster(time_limit="1-00:00:00", **values), "ada", rows, [], enforces=False)
    assert {finding.result for finding in found} <= {OK}, "Slurm does not enforce limits"
