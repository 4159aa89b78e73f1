"""Names in a job's options: all wrong ones at once, with the valid ones."""

from __future__ import annotations

from typing import Any

import pytest

from llm_bridge.config.cluster import Cluster
from llm_bridge.remote.transport import Completed
from llm_bridge.slurm import site_names
from llm_bridge.slurm.site_names import SiteNames, WrongNames
from llm_bridge.slurm.spec import ResolvedJob, Resources, SlurmJob

NODES = "a site's wrapper prints this\nmain|n1|a100,nvlink\nmain|n2|(null)\nlow|n1|a100,nvlink\n"
CONFIG = "Configuration data as of 2026-11-27\nAccountingStorageEnforce = {}\nEnforcePartLimits       = NO\n"
HOSTS = {"n[1-3]": "n1\nn2\nn3\n", "n1": "n1\n"}


class Login:
    """Stands for the login node."""

    def __init__(self, enforced: str = "associations,limits,qos", nodes: str = NODES) -> None:
        self.answers = {"sinfo": nodes, "scontrol config": CONFIG.format(enforced), "id": "ada\n"}
        self.answers["sacctmgr"] = "team07|normal,high\nteam08|normal\n"

    async def run(self, argv: list[str]) -> Completed:
        if argv[:3] == ["scontrol", "show", "hostnames"]:
            return Completed(0, HOSTS[argv[3]], "")
        name = "scontrol config" if argv[0] == "scontrol" else argv[0]
        if name == "sacctmgr":
            assert "user=ada" in argv
        answer = self.answers.get(name)
        return Completed(1, "", "error") if answer is None else Completed(0, answer, "")


def job(stage: str | None = None, **values: Any) -> ResolvedJob:
    cluster = Cluster(name="c", ssh_conn_id=None, workspace="/w", gpus_per_node=8, **values)
    resources = Resources(nodes=1, gpus_per_node=8)
    return SlurmJob(
        cluster="c", stage=stage, script="#!/bin/sh\n", directory="/w/d", resources=resources
    ).resolve(cluster)


async def wrong(resolved: ResolvedJob, login: Login) -> list[tuple[str, tuple[str, ...]]]:
    found = await site_names.wrong_names(resolved, await site_names.ask(login.run), login.run)
    return [(each.key, each.names) for each in found]


async def test_all_wrong_names_are_found_with_their_keys() -> None:
    resolved = job(
        partition="gpu,main",
        account="team01",
        qos="gold",
        constraint="h100&nvlink",
        nodelist="n[1-3]",
        exclude="n1",
    )
    assert await wrong(resolved, Login()) == [
        ("partition", ("gpu",)),
        ("account", ("team01",)),
        ("qos", ("gold",)),
        ("constraint", ("h100",)),
        ("nodelist", ("n3",)),
    ]


async def test_names_that_the_site_has_are_right() -> None:
    resolved = job(
        partition="main,low", account="team08", qos="high", constraint="a100*2&nvlink", nodelist="n1"
    )
    assert await wrong(resolved, Login()) == []


async def test_accounts_and_qos_are_compared_as_slurm_does_without_regard_to_case() -> None:
    assert await wrong(job(partition="main", account="Team08", qos="HIGH"), Login()) == []
    assert await wrong(job(partition="Main"), Login()) == [("partition", ("Main",))]


async def test_a_value_of_a_stage_is_named_with_the_stages_key() -> None:
    resolved = job("prepare", partition="main", stages={"prepare": {"partition": "cpu"}})
    assert await wrong(resolved, Login()) == [("stages.prepare.partition", ("cpu",))]


@pytest.mark.parametrize("enforced", ["none", ""])
async def test_accounts_and_qos_that_slurm_does_not_enforce_are_not_compared(enforced: str) -> None:
    assert await wrong(job(account="team01", qos="gold"), Login(enforced)) == []


async def test_qos_is_compared_only_where_it_is_enforced() -> None:
    assert await wrong(job(account="team01", qos="gold"), Login("associations")) == [("account", ("team01",))]


async def test_what_a_command_does_not_tell_is_not_compared() -> None:
    login = Login()
    login.answers = {}
    resolved = job(partition="gpu", account="team01", qos="gold", constraint="h100", nodelist="n[1-3]")
    assert await wrong(resolved, login) == []
    assert await site_names.ask(Login(nodes="").run) == SiteNames()


@pytest.mark.parametrize("constraint", ["[rack1*2&rack2]", "(a|b)&c", "!x"])
async def test_a_constraint_with_further_operators_is_left_to_sbatch(constraint: str) -> None:
    assert await wrong(job(constraint=constraint), Login()) == []


def test_the_error_has_key_file_and_valid_values() -> None:
    names = WrongNames("partition", "partition", ("gpu",), ("low", "main"))
    assert names.finding("mysite") == (
        "partition",
        "error",
        "partition in include/clusters/mysite.yaml: Slurm has no partition 'gpu'",
        "choose from low, main, or delete the key",
    )
    many = WrongNames("nodelist", "node", ("x", "y"), tuple(f"n{i}" for i in range(40)))
    assert (
        "no node 'x', 'y'" in many.finding("c").sentence
        and "n29 and 10 more, or delete the key" in many.finding("c").sentence
    )
    account = WrongNames("account", "account", ("team01",), ("team07",)).finding("c").sentence
    assert "Slurm has no account 'team01' for this user. Choose from team07" in account
