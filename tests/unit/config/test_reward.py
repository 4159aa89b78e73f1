"""The recipe's ppo.reward: its forms, and what is refused before a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_bridge.config.loader import load_recipe
from llm_bridge.config.recipe import Recipe
from llm_bridge.config.reward import BUILT_IN, Reward
from llm_bridge.exceptions import ConfigError

OPTIONS = (
    "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n"
    "    return kwargs.get('k', 1.0)\n"
)
GOOD = (
    "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n    return 1.0\n"
)


def recipe(include: Path, reward: Any) -> Recipe:
    file = include / "recipes" / "mine.yaml"
    file.write_text(yaml.safe_dump({"base_model": "a/b", "ppo": {"reward": reward}}))
    return load_recipe("mine")


def loaded(include: Path, reward: Any) -> Reward:
    found = recipe(include, reward).ppo.reward
    assert found is not None
    return found


def own(include: Path, text: str | bytes, name: str = "own") -> None:
    data = text.encode() if isinstance(text, str) else text
    (include / "rewards" / f"{name}.py").write_bytes(data)


def refused(include: Path, reward: Any) -> str:
    with pytest.raises(ConfigError) as error:
        recipe(include, reward)
    text = str(error.value)
    assert "include/recipes/mine.yaml" in text and "ppo.reward" in text
    return text


def test_without_a_reward_verl_chooses_one_as_before(include: Path) -> None:
    assert recipe(include, None).ppo.reward is None
    assert load_recipe("gsm8k_llama32_1b").ppo.reward is None


def test_a_name_is_a_built_in_reward_with_its_defaults(include: Path) -> None:
    assert loaded(include, "gsm8k").settings() == {
        "terms": [{"name": "gsm8k", "options": {"method": "strict", "format_score": 0.0}}]
    }


def test_a_name_is_a_file_whose_text_travels_with_the_settings(include: Path) -> None:
    own(include, OPTIONS)
    settings = loaded(include, {"name": "own", "bonus": 0.5}).settings()
    assert settings == {"terms": [{"name": "own", "options": {"bonus": 0.5}}], "files": {"own": OPTIONS}}


def test_a_run_keeps_the_text_that_it_was_started_with(include: Path) -> None:
    own(include, GOOD)
    made = recipe(include, "own")
    own(include, "not python")
    assert Recipe.model_validate_json(made.model_dump_json()) == made


def test_a_weighted_sum_mixes_built_in_rewards_and_files(include: Path) -> None:
    own(include, OPTIONS)
    terms = loaded(
        include,
        {
            "weighted_sum": [
                "math",
                {"name": "length_penalty", "weight": 0.2, "free": 100, "full": 200},
                {"name": "own", "weight": -1, "k": 1},
            ]
        },
    ).terms
    assert [(term.name, term.weight) for term in terms] == [
        ("math", 1.0),
        ("length_penalty", 0.2),
        ("own", -1.0),
    ]
    assert terms[1].options == {"free": 100, "full": 200} and terms[2].options == {"k": 1}


def test_the_example_is_a_valid_reward(include: Path) -> None:
    assert (
        loaded(include, {"name": "example", "step_bonus": 0.2}).files["example"].startswith('"""Reward right')
    )


@pytest.mark.parametrize(
    ("reward", "settings"),
    [
        ({"model": "/models/rm/"}, {"model": "/models/rm"}),
        (
            {"sandbox_url": "http://s:8080/run_code", "sandbox_max_concurrent": 8},
            {"sandbox_url": "http://s:8080/run_code", "sandbox_max_concurrent": 8},
        ),
    ],
)
def test_a_reward_model_and_a_sandbox_are_forms_of_their_own(
    include: Path, reward: dict[str, Any], settings: dict[str, Any]
) -> None:
    assert loaded(include, reward).settings() == settings


def test_a_file_may_ask_a_reward_model(include: Path) -> None:
    own(include, GOOD)
    reward = loaded(include, {"name": "own", "model": "/models/judge"})
    assert reward.model == "/models/judge" and reward.terms[0].name == "own"


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("gsm8kk", "there is no reward 'gsm8kk'. Did you mean gsm8k? Built-in: gsm8k, math,"),
        ("GSM8K", "Did you mean gsm8k?"),
        ("include/rewards/example.py", "Did you mean example?"),
        ("weighted_sum", "write weighted_sum as a key: {weighted_sum: [{name: NAME"),
        ({}, "found none of them in an empty mapping"),
        ({"name": "exact_match", "answer": "(a)(b)"}, "answer: has 2 groups, of which only the first counts"),
        ("nope", "Files in include/rewards: example"),
        ("../recipes/x", "there is no reward '../recipes/x'"),
        (["gsm8k"], "several rewards are {weighted_sum:"),
        (7, "expected 'NAME', {name: NAME"),
        ({"nam": "gsm8k"}, "found none of them in nam"),
        ({"model": "/m", "sandbox_url": "http://x"}, "found model and sandbox_url together"),
        ({"model": "/m", "gpus": 1}, "gpus: no such key. Allowed beside model: model"),
        ({"model": "owner/name"}, "must be an absolute path"),
        ({"name": "gsm8k", "model": "/m"}, "gsm8k does not use a model"),
        ({"sandbox_url": "sandbox:8080"}, "must be a URL"),
        ({"name": "gsm8k", "methd": "x"}, "methd: gsm8k has no such option. It takes method, format_score"),
        (
            {"name": "gsm8k", "method": "loose"},
            "method: Input should be 'strict' or 'flexible' (got 'loose')",
        ),
        ({"name": "regex"}, "pattern: regex needs this option"),
        ({"name": "regex", "pattern": "(a"}, "pattern: is not a regular expression: missing )"),
        ({"name": "length_penalty", "free": 9, "full": 9}, "full (9) must be more than free (9)"),
        ({"weighted_sum": []}, "weighted_sum: expected a list"),
        ({"weighted_sum": [{"name": "gsm8k", "weight": 0}]}, "weighted_sum.0.weight: must be a number"),
        ({"weighted_sum": [{"name": "gsm8k", "weight": "1"}]}, "weighted_sum.0.weight: must be a number"),
        (
            {"weighted_sum": ["math", {"name": "regex", "pattern": "["}]},
            "weighted_sum.1.pattern: is not a regular",
        ),
        ({"weighted_sum": ["math"], "weight": 1}, "weight: options stand beside the 'name'"),
    ],
)
def test_a_wrong_reward_is_refused_with_the_key_and_the_valid_values(
    include: Path, reward: Any, message: str
) -> None:
    assert message in refused(include, reward)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def compute_score(:\n  pass",
            "include/rewards/own.py, line 1: invalid syntax: def compute_score(:",
        ),
        ("x = 1\n  y = 2\n", "line 2: unexpected indent: y = 2"),
        (b"# caf\xe9\n", "include/rewards/own.py, line 1: not UTF-8 (byte 0xe9)"),
        ("x = 1\0", "own.py"),
        ("def reward(a): ...\n", "has no function compute_score (it has reward): write 'def compute_score("),
        ("class R:\n    def compute_score(self, **k): ...\n", "has no function compute_score"),
        (
            "def compute_score(solution_str, ground_truth):\n    return 1\n",
            "line 1: compute_score does not take data_source, extra_info, which verl passes",
        ),
        (
            GOOD.replace("extra_info=None", "extra_info, tokenizer"),
            "compute_score needs tokenizer: set it beside 'name'",
        ),
        (GOOD.replace("solution_str,", "solution_str, /,"), "needs data_source (positional-only)"),
        ("import example\n" + GOOD, "line 1: imports example, but only this file is sent"),
        ("from .example import last_number\n" + GOOD, "imports .example, but only this file is sent"),
        ("#" + 300_000 * "x", "has 300001 bytes, and at most 262144"),
    ],
)
def test_a_file_that_verl_could_not_call_is_refused_with_its_line(
    include: Path, text: str | bytes, message: str
) -> None:
    own(include, text)
    assert message in refused(include, "own")


def test_an_option_that_the_function_does_not_take_is_refused(include: Path) -> None:
    own(include, GOOD.replace("**kwargs", "bonus=1, *, mode='x'"))
    assert "does not take the option bonsu; it takes bonus, mode" in refused(
        include, {"name": "own", "bonsu": 1}
    )
    assert loaded(include, {"name": "own", "bonus": 1, "mode": "y"}).terms
    own(include, GOOD.replace("**kwargs", "bonus=1, **more"))
    assert "does not take the option bonsu; it takes bonus (**more is not read)" in refused(
        include, {"name": "own", "bonsu": 1}
    )
    own(include, OPTIONS)
    assert loaded(include, {"name": "own", "anything": 1}).terms


@pytest.mark.parametrize("name", ["gsm8k", "own"])
def test_a_weight_is_for_a_weighted_sum(include: Path, name: str) -> None:
    own(include, OPTIONS)
    assert "weight: is for the rewards of a weighted_sum" in refused(include, {"name": name, "weight": 2})


@pytest.mark.parametrize(
    "reward",
    [{"terms": []}, {"terms": [{"name": "gsm8k"}]}, {"terms": [{"name": "x"}], "files": {"x": GOOD}}],
)
def test_the_form_that_a_run_keeps_is_not_one_of_recipes(include: Path, reward: Any) -> None:
    assert "found none of them in " in refused(include, reward)


def test_an_option_cannot_be_a_parameter_that_verl_passes_or_no_json(include: Path) -> None:
    own(include, GOOD)
    assert "verl passes this parameter itself" in refused(include, {"name": "own", "extra_info": 1})
    assert "an option is not text" in refused(include, {"name": "own", "x": float("inf")})


@pytest.mark.parametrize("option", ["step bonus", "step-bonus", "class", 5, ""])
def test_an_option_must_be_the_name_of_a_python_parameter(include: Path, option: Any) -> None:
    own(include, GOOD)
    assert f"own: the option {str(option)!r} is no name of a Python parameter" in refused(
        include, {"name": "own", option: 1}
    )


@pytest.mark.parametrize("name", [None, 5, ["own"], {"a": 1}])
def test_a_rewards_name_must_be_text(include: Path, name: Any) -> None:
    text = refused(include, {"name": name})
    assert f"name: must be the name of a reward (got {name!r})" in text and text.count("(got ") == 1


@pytest.mark.parametrize(
    "text",
    [
        "async " + GOOD,
        "from somewhere import compute_score\n",
        "compute_score = lambda **k: 1.0\n",
        "try:\n    import x\nexcept ImportError:\n    x = None\n" + GOOD,
        "@decorated\ndef compute_score(f): ...\n",
        "\ufeff" + GOOD,
    ],
)
def test_any_way_to_define_the_function_is_accepted(include: Path, text: str) -> None:
    own(include, text)
    assert loaded(include, "own").files["own"]


def test_a_file_with_the_name_of_a_built_in_reward_is_refused(include: Path) -> None:
    own(include, GOOD, "gsm8k")
    assert "gsm8k is a built-in reward and a file of include/rewards: rename the file" in refused(
        include, "gsm8k"
    )


def test_a_file_is_read_and_not_run(include: Path) -> None:
    own(include, GOOD + "raise SystemExit('imported')\n")
    assert loaded(include, "own").terms


def test_settings_of_verl_that_set_the_reward_too_are_found() -> None:
    verl = {"reward.custom_reward_function.path": "/x.py", "reward.num_workers": 4}
    assert Reward.model_validate({"terms": [{"name": "gsm8k"}]}).conflicts(verl) == [*verl][:1]
    assert Reward(model="/m").conflicts(verl) == []
    assert Reward(model="/m").conflicts({"+reward.reward_model.enable": True}) == [
        "+reward.reward_model.enable"
    ]


def test_every_built_in_reward_says_which_options_it_takes(include: Path) -> None:
    for name, options in BUILT_IN.items():
        text = refused(include, {"name": name, "no_such": 1})
        assert all(field in text for field in options.model_fields), name
