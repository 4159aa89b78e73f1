"""Grid of a sweep."""

from __future__ import annotations

import pytest

from llm_bridge.config.sweep import MAX_POINTS, parse
from llm_bridge.exceptions import ConfigError

LR, N = "ppo.actor_rollout_ref.actor.optim.lr", "ppo.actor_rollout_ref.rollout.n"


def test_each_combination_of_the_lines_is_a_point() -> None:
    points = parse(f"# learning rate\n{LR} = 1.0e-6, 3.0e-6\n\n{N}=4,8\n")
    assert [point.text for point in points] == [
        f"lr={lr}, n={n}" for lr in ("1.0e-6", "3.0e-6") for n in ("4", "8")
    ]
    assert points[0].overrides == f"{LR}=1.0e-6\n{N}=4"


def test_commas_in_quotes_and_brackets_separate_no_values() -> None:
    points = parse("sft.model.target_modules = [q_proj, k_proj], \"a, b\", 'all-linear'")
    assert [point.overrides.partition("=")[2] for point in points] == [
        "[q_proj, k_proj]",
        '"a, b"',
        "'all-linear'",
    ]


def test_fields_of_the_form_are_no_overrides() -> None:
    points = parse(f"base_model = me/a, /models/b\nnodes = 1\n{N} = 4")
    assert points[1].fields == {"base_model": "/models/b", "nodes": "1"}
    assert points[1].overrides == f"{N}=4"


def test_values_of_fields_are_texts_that_yaml_does_not_change() -> None:
    points = parse("recipe = no, 007, 2026-11-28, 'on', 1e5")
    assert [point.fields["recipe"] for point in points] == ["no", "007", "2026-11-28", "on", "1e5"]


def test_keys_of_the_recipe_become_fields_of_the_form_with_their_types() -> None:
    points = parse(
        "ppo.algorithm = grpo\ndata.max_rows = 10, 20\nhub.private = yes\npublish.min_score = 0.1\n"
        "evaluate.harness = [hellaswag, mmlu]"
    )
    assert points[1].fields == {
        "ppo.algorithm": "grpo",
        "data.max_rows": 20,
        "hub.private": "true",
        "publish.min_score": 0.1,
        "evaluate.harness": ["hellaswag", "mmlu"],
    }
    assert not points[1].overrides


def test_true_is_not_the_same_value_as_1() -> None:
    assert len(parse("ppo.algorithm.x = true, 1")) == 2


def test_a_comment_behind_the_values_is_none_of_them() -> None:
    [four, eight] = parse(f"{N} = 4, 8  # not 16, which is slow")
    assert (four.overrides, eight.overrides) == (f"{N}=4", f"{N}=8")


def test_two_keys_with_the_same_last_part_are_told_apart() -> None:
    [point, _] = parse("sft.optim.lr = 1\nppo.actor.optim.lr = 2, 3\nnodes = 1")
    assert point.text == "sft.optim.lr=1, ppo.actor.optim.lr=2, nodes=1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the grid is empty: write a line such as ppo"),
        ("# nothing", "the grid is empty"),
        (N, r"line 1 \(.*\): is not KEY = VALUE"),
        (
            "rollout.n = 1, 2",
            r"'rollout\.n' is no key of a sweep: allowed are sft\.KEY, ppo\.KEY, recipe, base_m",
        ),
        (f"{N} = 4, , 8", "a value is empty"),
        (f"{N} =", "a value is empty"),
        (f"{N} = 4, 4", "the value 4 stands twice"),
        (f"{N} = [4, 8", r"\] is missing at the end"),
        (f"{N} = 'a, b", "' is missing at the end"),
        (f"{N} = 4\nsft.optim.lr = 1\n+{N} = 8", r"line 3 .*rollout\.n is set in line 1 already"),
        ("ppo.keep = 1, 2", r"ppo\.keep is a key of recipes and not of verl"),
        (f"{N} = *a", "alias of YAML"),
        ("base_model = @me/a", "line 1 .*the value is not YAML"),
        ("recipe = [a, b]", r"\[a, b\] is not a text"),
        ("recipe = a, 'a'", "the value a stands twice"),
        (f"{LR} = 1e-5, 0.00001", "the values 1e-5 and 0.00001 are equal: remove one"),
        (f"{N} = 4, 4.0", r"the values 4 and 4\.0 are equal"),
        ("data.max_rows = 10, many", "line 1 .*should be a valid integer"),
        ("ppo.algorithm = grpo, grop", "line 1 .*should be 'ppo', 'grpo'"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)the trigger form, sweep.*{message}"):
        parse(text)


def test_all_wrong_lines_are_reported_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)line 1 .*line 3 "):
        parse(f"x = 1\n{N} = 4\ny")


def test_the_number_of_runs_is_limited() -> None:
    eight = ", ".join(map(str, range(8)))
    assert len(parse(f"{N} = {eight}\n{LR} = {eight}")) == MAX_POINTS
    with pytest.raises(ConfigError, match="8 x 9 = 72 runs, but at most 64"):
        parse(f"{N} = {eight}\n{LR} = {eight}, 9")
