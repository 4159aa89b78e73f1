"""Turns of mapped tasks of which some may be active at once."""

from __future__ import annotations

import random

import pytest

from llm_bridge.triggers.turn import TurnTrigger, is_turn


def test_the_first_ones_start_at_once_and_the_others_when_one_before_them_has_ended() -> None:
    states = {"run_0": "deferred", "run_1": "running"}
    assert [is_turn(states, "run", index, 2) for index in range(4)] == [True, True, False, False]
    assert is_turn({**states, "run_0": "failed"}, "run", 2, 2)


def test_an_instance_that_is_marked_while_it_waits_takes_no_turn_of_others() -> None:
    states = {"run_0": "deferred", "run_1": "deferred", "run_2": "failed"}
    assert not is_turn(states, "run", 3, 2)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_never_more_than_the_limit_are_active_whatever_the_order_of_ends(at_once: int) -> None:
    chance = random.Random(7)
    states: dict[str, str] = dict.fromkeys((f"run_{index}" for index in range(20)), "deferred")
    active: set[int] = set()
    waiting = set(range(20))
    while active or waiting:
        able = [index for index in waiting if is_turn(states, "run", index, at_once)]
        assert able or active, "nothing can go on"
        for index in chance.sample(able, len(able)):
            waiting.remove(index)
            active.add(index)
        assert len(active) <= at_once
        ended = chance.choice(sorted(active))
        active.remove(ended)
        states[f"run_{ended}"] = chance.choice(["success", "failed"])


def test_it_is_rebuilt_from_what_airflow_stores() -> None:
    path, arguments = TurnTrigger("d", "r", "run", 3, 2).serialize()
    assert path == "llm_bridge.triggers.turn.TurnTrigger"
    assert TurnTrigger(**arguments).serialize() == (path, arguments)
