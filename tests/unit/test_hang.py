"""When a silent job counts as hung."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from llm_bridge.config.hang import Hang
from llm_bridge.config.load import load_cluster
from llm_bridge.plan import make_plan
from llm_bridge.slurm.hang import MOST_GAP_SECONDS, Followed, HangWatch, Silence
from llm_bridge.slurm.stacks import FEWEST_LINES, _of_every_node
from llm_bridge.stages import ppo, prepare, ray_cluster, sft, sft_then_ray


class Clock:
    """Goes on when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def silence(clock: Clock, **more: Any) -> Silence:
    """A job whose limit is one minute, and runs."""
    start = more.pop("start_minutes", 0)
    found = Silence(Hang(minutes=1, start_minutes=start), clock=clock, **more)
    found.runs = True
    return found


def looks(found: Silence, clock: Clock, seconds: float, size: int = 5) -> None:
    """A look a second."""
    for _ in range(int(seconds)):
        clock.now += 1
        found.look(size)


def test_a_job_hangs_once_it_was_seen_silent_for_longer_than_its_limit(clock: Clock) -> None:
    found = silence(clock)
    looks(found, clock, 60)
    assert not found.too_long
    looks(found, clock, 2)
    assert found.too_long


def test_any_output_is_life_also_of_a_line_that_has_not_ended(clock: Clock) -> None:
    found = silence(clock)
    looks(found, clock, 50)
    looks(found, clock, 50, size=6)
    assert not found.too_long


def test_a_job_that_waits_or_is_suspended_does_not_hang_and_counts_anew_afterwards(clock: Clock) -> None:
    found = silence(clock)
    looks(found, clock, 50)
    found.runs = False
    looks(found, clock, 500)
    assert found.seconds == 0
    found.runs = True
    looks(found, clock, 50)
    assert not found.too_long


def test_a_login_node_that_is_away_is_not_the_jobs_silence(clock: Clock) -> None:
    found = Silence(Hang(minutes=30), clock=clock)
    found.runs = True
    looks(found, clock, 10)
    clock.now += 24 * 3600
    found.look(5)
    assert found.seconds <= 10 + MOST_GAP_SECONDS and not found.too_long


def test_a_training_may_take_longer_until_its_first_step(clock: Clock) -> None:
    found = silence(clock, start_minutes=2)
    looks(found, clock, 150)
    assert not found.too_long
    found.stepped = True
    assert found.too_long


def test_a_driver_that_has_not_begun_does_not_hang(clock: Clock) -> None:
    found = silence(clock, starts_with_output=True)
    looks(found, clock, 500, size=0)
    assert found.seconds == 0
    looks(found, clock, 62, size=1)
    assert found.too_long


async def test_a_job_that_goes_on_after_it_was_silent_does_not_hang_any_more() -> None:
    """And its end says nothing of a hang."""
    log, said = logging.getLogger("test"), ["step one"]
    job = Followed(None, log, None, None, None, "job 7", lambda: said, lambda: "")
    ended: list[str] = []

    async def end() -> None:
        ended.append("it")

    async with HangWatch(Hang(minutes=0.001), job, end) as watch:
        watch.runs()
        for _ in range(300):
            watch.look(5)
            if watch.found:
                break
            await asyncio.sleep(0.01)
        assert watch.found and watch.found["ended"] is False and watch.found["stacks"] == []
        watch.look(6)
        assert watch.found is None and ended == []


def plan(include: Path, cluster: dict[str, Any], recipe: dict[str, Any]) -> Any:
    """A run of the tiny recipe with these settings more."""
    for file, more in (("clusters/local.yaml", cluster), ("recipes/tiny_cpu.yaml", {})):
        values = yaml.safe_load((include / file).read_text())
        if file.startswith("recipes"):
            values["sft"] |= recipe
        (include / file).write_text(yaml.safe_dump(values | more))
    return make_plan({"recipe": "tiny_cpu"}, "d", "r")


def test_trainings_are_watched_for_half_an_hour_unless_something_else_is_said(include: Path) -> None:
    found = plan(include, {}, {})
    assert sft(found).hang == Hang(minutes=30, start_minutes=15)
    assert ppo(found).hang == Hang(minutes=30, start_minutes=15)


def test_a_training_that_shares_its_allocation_with_the_ray_cluster_is_watched_as_well(include: Path) -> None:
    found = plan(include, {}, {"hang_minutes": 5})
    assert sft_then_ray(found).hang == sft(found).hang == Hang(minutes=5, start_minutes=15)


def test_a_download_and_a_ray_cluster_that_idles_are_not_watched(include: Path) -> None:
    found = plan(include, {}, {})
    assert prepare(found).hang is None and ray_cluster(found).hang is None


@pytest.mark.parametrize("never", [None, 0])
def test_a_cluster_file_can_turn_it_off_and_a_recipe_on(include: Path, never: Any) -> None:
    found = plan(include, {"hang_minutes": never}, {"hang_minutes": 5, "on_hang": "retry"})
    assert sft(found).hang == Hang(minutes=5, action="retry", start_minutes=15)
    assert ppo(found).hang is None


def test_a_recipe_can_turn_it_off(include: Path) -> None:
    assert sft(plan(include, {"on_hang": "retry"}, {"hang_minutes": 0})).hang is None


def test_a_hang_that_is_to_be_retried_is_not_spelled_otherwise(include: Path) -> None:
    with pytest.raises(ValidationError, match="'report' or 'retry'"):
        Hang.model_validate({"minutes": 5, "action": "restart"})
    assert load_cluster("local").on_hang == "report"


def test_stacks_of_many_nodes_show_something_of_each() -> None:
    lines = [f"n{node}: line {line}" for line in range(50) for node in range(60)]
    shown = _of_every_node(lines)
    assert {line.split(":")[0] for line in shown} == {f"n{node}" for node in range(60)}
    assert len(shown) == 60 * FEWEST_LINES and shown[0] == "n0: line 0"
