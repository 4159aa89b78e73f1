"""A recipe with several clusters: the one that can start the run first takes it, and keeps it.

``check_site`` and Slurm are stand-ins here; tests/operators/test_refusals.py asks a real cluster.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import TaskDeferred

from llm_bridge.config.loader import load_cluster, load_recipe
from llm_bridge.exceptions import ConfigError, LoginNodeUnreachable, NotAcceptedYet, SlurmUnavailable
from llm_bridge.pipeline import check, choice, first_contact
from llm_bridge.pipeline.check import CheckOperator
from llm_bridge.pipeline.plan import Plan, make_plan
from llm_bridge.slurm.client import StartEstimate
from llm_bridge.slurm.spec import ResolvedJob
from testing.task_context import Store

CLUSTERS = ["x", "y", "z"]


class Sites:
    """Clusters by name: the estimate in seconds, None for none, or what the check or the estimate raises."""

    def __init__(self) -> None:
        self.start: dict[str, float | Exception | None] = dict.fromkeys(CLUSTERS, 0.0)
        self.refuses: dict[str, Exception] = {}
        self.new: set[str] = set()
        self.checked: list[str] = []
        self.estimated: list[str] = []
        self.store = Store()

    async def check_site(self, plan: Plan) -> Plan:
        self.checked.append(plan.cluster)
        if error := self.refuses.get(plan.cluster):
            raise error
        return plan

    @asynccontextmanager
    async def open_client(self, name: str) -> AsyncIterator[Any]:
        async def estimate_start(resolved: ResolvedJob) -> StartEstimate:
            self.estimated.append(resolved.job.template or "")
            start = self.start[name]
            if isinstance(start, Exception):
                raise start
            return StartEstimate("sbatch: Job 7 to start", start)

        yield SimpleNamespace(cluster=load_cluster(name), estimate_start=estimate_start)

    def execute(self, event: dict[str, Any] | None = None, **params: Any) -> Plan:
        """Run the task ``check`` of one run; with an event, after a wait."""
        ti = SimpleNamespace(dag_id="d", run_id="r")
        context: Any = {
            **{"ti": ti, "params": {"recipe": "several", **params}},
            "task_state_store": self.store,
        }
        operator = CheckOperator(task_id="check")
        values = operator.execute_again(context, event) if event else operator.execute(context)
        return Plan.model_validate(values)


@pytest.fixture
def sites(include: Path, monkeypatch: pytest.MonkeyPatch) -> Sites:
    recipe = yaml.safe_load((include / "recipes" / "tiny_cpu.yaml").read_text())
    cluster = (include / "clusters" / "local.yaml").read_text()
    for name in CLUSTERS:
        (include / "clusters" / f"{name}.yaml").write_text(cluster)
    recipe = {**recipe, "cluster": None, "clusters": CLUSTERS}
    (include / "recipes" / "several.yaml").write_text(yaml.safe_dump(recipe))
    sites = Sites()
    monkeypatch.setattr(check, "check_site", sites.check_site)
    monkeypatch.setattr(choice, "open_client", sites.open_client)
    monkeypatch.setattr(first_contact, "is_first", lambda cluster: cluster.name in sites.new)
    monkeypatch.setattr(first_contact, "record", lambda cluster: sites.new.discard(cluster.name))
    return sites


@pytest.mark.parametrize(
    ("starts", "chosen"),
    [
        ({}, "x"),
        ({"x": 7200.0, "y": 30.0, "z": 0.0}, "y"),
        ({"x": 59.0, "y": 0.0}, "x"),
        ({"x": None, "y": None, "z": 9999.0}, "z"),
        ({"x": None, "y": None, "z": None}, "x"),
        ({"x": NotAcceptedYet("drained"), "y": 90_000.0, "z": None}, "y"),
    ],
)
def test_the_cluster_that_can_start_the_largest_job_first_is_chosen_in_the_order_of_the_list(
    sites: Sites, starts: dict[str, Any], chosen: str
) -> None:
    sites.start |= starts
    plan = sites.execute()
    assert plan.cluster == chosen and plan.directory.startswith(load_cluster(chosen).workspace)
    assert plan.cluster_choice.startswith(
        f"Cluster {chosen} of x, y, z: the largest job can start on {chosen} "
    )


def test_the_reasons_are_in_the_choice(sites: Sites) -> None:
    """Both SFT and the Ray cluster have the most GPUs; prepare and merge have none."""
    sites.start |= {"y": 7500.0}
    sites.refuses["x"] = SlurmUnavailable("slurmctld does not\nanswer.")
    assert sites.execute().cluster_choice == (
        "Cluster z of x, y, z: the largest job can start on z now; x was skipped: slurmctld does not answer; "
        "y in 2 h 5 min"
    )
    assert sites.estimated == ["sft", "ray_cluster"] * 2


def test_the_form_names_the_cluster_without_a_choice(sites: Sites) -> None:
    plan = sites.execute(cluster="z")
    assert (plan.cluster, plan.cluster_choice, sites.checked, sites.estimated) == ("z", "", ["z"], [])


def test_a_run_stays_on_its_cluster_when_check_is_retried_or_cleared(sites: Sites, include: Path) -> None:
    sites.start["x"] = 600.0
    first = sites.execute()
    assert first.cluster == "y"
    sites.checked.clear()
    sites.start |= {"x": 0.0, "y": 90_000.0}
    again = sites.execute()
    assert (again, sites.checked) == (first, ["y"])
    sites.refuses["y"] = LoginNodeUnreachable("down")
    with pytest.raises(TaskDeferred) as deferred:
        sites.execute()
    assert deferred.value.trigger.serialize()[1]["cluster"] == "y"
    assert deferred.value.trigger.serialize()[1]["deadline"] is None
    del sites.refuses["y"]
    file = include / "recipes" / "several.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"clusters": ["x"]}))
    assert sites.execute().cluster == "y", "the recipe was edited after the run had begun"
    sites.store = Store()
    assert sites.execute().cluster == "x", "another run"


@pytest.mark.parametrize("named_in", ["recipe", "form"])
def test_a_run_with_one_cluster_stays_there_when_its_recipe_is_edited_and_check_is_cleared(
    sites: Sites, include: Path, caplog: pytest.LogCaptureFixture, named_in: str
) -> None:
    caplog.set_level("INFO")
    file = include / "recipes" / "several.yaml"
    recipe = {**yaml.safe_load(file.read_text()), "clusters": []}
    file.write_text(yaml.safe_dump({**recipe, "cluster": "x"}))
    params = {"cluster": "x"} if named_in == "form" else {}
    first = sites.execute(**params)
    assert (first.cluster, first.cluster_choice) == ("x", "")
    assert sites.execute(**params) == first and "has begun on" not in caplog.text, "as named"
    file.write_text(yaml.safe_dump({**recipe, "clusters": ["y", "z"]}))
    assert sites.execute(**params).cluster == "x" and sites.checked == ["x"] * 3
    moved = (
        "this run has begun on cluster x, and stays there with its jobs and data, although y, z is named now. "
        "To use another cluster, trigger a new run"
    )
    assert (moved in caplog.text) is (named_in == "recipe")


def test_a_check_that_fails_has_chosen_nothing(sites: Sites, include: Path) -> None:
    file = include / "recipes" / "several.yaml"
    recipe = {**yaml.safe_load(file.read_text()), "clusters": []}
    file.write_text(yaml.safe_dump({**recipe, "cluster": "x"}))
    sites.refuses["x"] = ConfigError("no partition gpu")
    with pytest.raises(ConfigError, match="no partition gpu"):
        sites.execute()
    file.write_text(yaml.safe_dump({**recipe, "cluster": "y"}))
    assert sites.execute().cluster == "y"


def test_the_cluster_that_is_chosen_is_checked_once_and_its_plan_is_complete(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check completes the plan with what the cluster has of the run that it starts from."""
    calls = []

    async def check_site(plan: Plan) -> Plan:
        calls.append(plan.cluster)
        return plan.model_copy(update={"run_name": f"checked on {plan.cluster}"})

    monkeypatch.setattr(check, "check_site", check_site)
    sites.start["x"] = 600.0
    assert sites.execute().run_name == "checked on y" and calls == ["x", "y", "z"]


def test_clusters_that_do_not_answer_now_are_all_asked_again(sites: Sites) -> None:
    sites.refuses = {
        "x": ConfigError("no partition gpu"),
        "y": LoginNodeUnreachable("no route"),
        "z": SlurmUnavailable("timed out"),
    }
    sites.new = {"y"}
    with pytest.raises(TaskDeferred) as deferred:
        sites.execute()
    values = deferred.value.trigger.serialize()[1]
    assert values["cluster"] == "z" and values["deadline"] is not None
    assert "x was skipped: no partition gpu; y was skipped: no route" in values["reason"]
    silent = {"service": "z", "answers": False, "deadline": 1.0}
    with pytest.raises(TaskDeferred):
        sites.execute(silent)
    del sites.refuses["y"]
    assert sites.execute(silent).cluster == "y"


def test_clusters_that_can_never_take_the_run_are_listed_with_their_reasons(sites: Sites) -> None:
    sites.refuses = {
        "x": ConfigError("cluster 'x': no partition gpu"),
        "y": LoginNodeUnreachable("no route"),
        "z": ConfigError("no account"),
    }
    sites.new = {"y"}
    with pytest.raises(TaskDeferred) as deferred:
        sites.execute()
    assert deferred.value.trigger.serialize()[1]["cluster"] == "y", "it may have been busy: for a minute"
    with pytest.raises(ConfigError) as error:
        sites.execute({"service": "y", "answers": False})
    text = str(error.value)
    assert text.startswith(
        "none of the 3 clusters can take the run; nothing was submitted:\n  - x: cluster 'x': no"
    )
    assert "\n  - y: the login node of cluster 'y' has never answered" in text
    assert text.endswith("\n  - z: no account")


def test_a_cluster_whose_file_is_missing_is_skipped_with_its_reason(sites: Sites, include: Path) -> None:
    (include / "clusters" / "x.yaml").unlink()
    plan = sites.execute()
    assert plan.cluster == "y" and "x was skipped: 'x' is not one of the clusters in" in plan.cluster_choice


def test_cluster_and_clusters_exclude_each_other(include: Path) -> None:
    file = include / "recipes" / "several.yaml"
    recipe = yaml.safe_load((include / "recipes" / "tiny_cpu.yaml").read_text())
    for clusters, said in (
        (["local"], "set cluster or clusters, not both"),
        (["a", "b", "a"], "twice: a, b, a"),
    ):
        file.write_text(yaml.safe_dump({**recipe, "cluster": "local", "clusters": clusters}))
        with pytest.raises(ConfigError, match=said):
            load_recipe("several")


def test_a_plan_outside_of_the_task_check_is_on_the_first_cluster(sites: Sites) -> None:
    assert make_plan({"recipe": "several"}, "d", "r").cluster == "x"
