"""Hang limits of each job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llm_bridge.config.hang import Hang
from llm_bridge.config.loader import load_cluster
from llm_bridge.pipeline.plan import make_plan
from llm_bridge.pipeline.stages import ppo, prepare, ray_cluster, sft, sft_then_ray


def plan(include: Path, cluster: dict[str, Any], recipe: dict[str, Any]) -> Any:
    """A run of the tiny recipe with these settings more."""
    for file, more in (("clusters/local.yaml", cluster), ("recipes/tiny_cpu.yaml", {})):
        values = yaml.safe_load((include / file).read_text())
        if file.startswith("recipes"):
            values["sft"] |= recipe
        (include / file).write_text(yaml.safe_dump(values | more))
    return make_plan({"recipe": "tiny_cpu"}, "d", "r")


def test_trainings_have_a_limit_of_half_an_hour_by_default(include: Path) -> None:
    found = plan(include, {}, {})
    assert sft(found).hang == Hang(minutes=30, start_minutes=15)
    assert ppo(found).hang == Hang(minutes=30, start_minutes=15)


def test_a_training_that_shares_its_allocation_with_the_ray_cluster_keeps_its_limit(include: Path) -> None:
    found = plan(include, {}, {"hang_minutes": 5})
    assert sft_then_ray(found).hang == sft(found).hang == Hang(minutes=5, start_minutes=15)


def test_a_download_and_an_idle_ray_cluster_have_no_limit(include: Path) -> None:
    found = plan(include, {}, {})
    assert prepare(found).hang is None and ray_cluster(found).hang is None


@pytest.mark.parametrize("never", [None, 0])
def test_a_cluster_file_can_turn_it_off_and_a_recipe_on(include: Path, never: Any) -> None:
    found = plan(include, {"hang_minutes": never}, {"hang_minutes": 5, "on_hang": "retry"})
    assert sft(found).hang == Hang(minutes=5, action="retry", start_minutes=15)
    assert ppo(found).hang is None


def test_a_recipe_can_turn_it_off(include: Path) -> None:
    assert sft(plan(include, {"on_hang": "retry"}, {"hang_minutes": 0})).hang is None


def test_an_unknown_action_is_refused_with_the_allowed_ones(include: Path) -> None:
    with pytest.raises(ValidationError, match="'report' or 'retry'"):
        Hang.model_validate({"minutes": 5, "action": "restart"})
    assert load_cluster("local").on_hang == "report"
