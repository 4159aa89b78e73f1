"""Fields of the trigger form for keys of the recipe, as Airflow checks their values."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError

from llm_bridge.config.recipe_keys import KEYS
from llm_bridge.pipeline.form import form

CHOICES = [name for name, field in form().items() if name != "recipe" and field.schema.get("enum")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sft.optim.lr", "1e-6"),
        ("sft.optim.lr", 1e-6),
        ("publish.min_score", "-0.5"),
        ("data.max_rows", 5),
        ("ppo.algorithm", "grpo"),
        ("hub.private", "false"),
        ("evaluate.harness", ["hellaswag"]),
        ("sft.time_limit", "2:00:00"),
    ],
)
def test_airflow_takes_values_as_the_form_and_the_command_line_send_them(name: str, value: Any) -> None:
    field = form()[name]
    assert field.value is None
    assert field.resolve(value) == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sft.optim.lr", "fast", "does not match"),
        ("sft.optim.lr", 2, "2 is greater than the maximum of 1"),
        ("data.max_rows", 0, "0 is less than the minimum of 1"),
        ("data.max_rows", "many", "is not of type"),
        ("ppo.algorithm", "grop", "'grop' is not one of"),
        ("evaluate.samples", 65, "65 is greater than the maximum of 64"),
    ],
)
def test_airflow_refuses_a_value_of_the_wrong_kind_or_beyond_its_limits(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(ParamValidationError, match=message):
        form()[name].resolve(value)


def test_all_fields_for_keys_of_the_recipe_are_empty_at_first() -> None:
    assert [name for name in KEYS if form()[name].value is not None] == []


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_can_be_taken_back(name: str) -> None:
    # Airflow's button for that sends null.
    schema = form()[name].schema
    assert schema["enum"][0] is None and schema["values_display"]["None"].startswith("(")
    assert form()[name].resolve(None) is None
