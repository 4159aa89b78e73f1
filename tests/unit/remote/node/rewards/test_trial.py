"""The trial of a reward: real calls in a process of their own, on rows as verl passes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.rewards import reference, trial, trial_calls

HEAD = "def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n"
RIGHT = HEAD + "    return 1.0 if solution_str.endswith('#### ' + ground_truth) else 0.0\n"


def row(number: int, truth: Any, answer: str | None = None) -> dict[str, Any]:
    messages = (
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}] if answer else None
    )
    return {
        "number": number,
        "data_source": "mine",
        "ground_truth": truth,
        "extra_info": {"index": number},
        "messages": messages,
    }


ROWS = [row(n, str(n + 1), f"It is {n + 1}.\n#### {n + 1}") for n in range(4)]


def own(text: str, **more: Any) -> dict[str, Any]:
    return {"terms": [{"name": "own", **more}], "files": {"own": text}}


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def try_it(reward: Any, rows: list[dict[str, Any]] = ROWS, mode: str = "refuse", **verl: Any) -> None:
        monkeypatch.setattr(trial, "read_rows", lambda _: [dict(item) for item in rows])
        training = {"train_files": "/data/train.parquet", "verl": verl}
        trial.check(training | ({"reward": reward} if reward else {}), mode, tmp_path)

    return try_it


@pytest.fixture
def refused(check: Any) -> Any:
    def text(reward: Any, rows: list[dict[str, Any]] = ROWS) -> str:
        with pytest.raises(JobError) as error:
            check(reward, rows)
        assert error.value.kind == "bad_config"
        assert "/data/train.parquet" in str(error.value) and "ppo.reward_trial" in str(error.value)
        return str(error.value)

    return text


def test_a_good_reward_passes_with_its_mean_scores(check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check(own(RIGHT))
    assert (
        "tried on 4 rows; mean scores: the reference answer 1, another row's answer 0"
        in capsys.readouterr().out
    )


def test_a_reward_that_prints_disturbs_nothing(check: Any, tmp_path: Path) -> None:
    check(own("print('{}')\n" + RIGHT.replace("    return", "    print(solution_str)\n    return")))
    assert (tmp_path / "reward_files" / "trial.log").stat().st_size <= trial.KEPT_BYTES


def test_a_reward_may_return_texts_and_nothing_beside_its_score(check: Any) -> None:
    score = "float(solution_str.endswith('#### ' + ground_truth))"
    check(own(HEAD + f"    return {{'score': {score}, 'pred': solution_str, 'n': None, 'ok': True}}\n"))


def test_a_name_that_is_no_function_is_refused_with_the_file(refused: Any) -> None:
    assert "compute_score is no function but 5: define it in include/rewards/own.py" in refused(
        own("compute_score = 5\n")
    )


def test_a_built_in_reward_needs_the_ground_truth_of_nearly_all_rows(refused: Any, check: Any) -> None:
    reward = {
        "terms": [{"name": "exact_match"}, {"name": "length_penalty", "options": {"free": 1, "full": 2}}]
    }
    lacking = [row(n, "" if n else "1", f"{n + 1}") for n in range(4)]
    assert (
        "3 of 4 rows have no ground truth, with which exact_match compares a response, such as row 1: name its column "
        "with data.columns.truth"
    ) in refused(reward, lacking)
    check({"terms": reward["terms"][:1]}, [row(n, f"{n}", f"{n}") for n in range(9)] + [row(9, "", "x")])


def test_an_async_reward_is_awaited(check: Any) -> None:
    check(own("async " + RIGHT))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "    return extra_info['weight']\n",
            "row 0 with the reference answer: KeyError: 'weight' (include/rewards/own.py, line 2); "
            "the same in 16 calls",
        ),
        ("    return float('nan')\n", "returned nan, which is not a finite number; the same in 16 calls"),
        ("    return '1.0'\n", "returned '1.0' (str), which is not a number"),
        ("    return 10**400\n", "which is not a finite number; the same in 16 calls"),
        (
            "    yield 1.0\n",
            "returned <generator object compute_score> (generator), which is not a number; the same in 16",
        ),
        (
            "    return {'score': 1.0, 'parts': [1, 2]}\n",
            "returned [1, 2] (list) as parts, which is not a number; the same in 16 calls",
        ),
        ("    return {'score': 1.0, 'x': float('inf')}\n", "returned inf as x, which is not a finite number"),
        (
            "    return {'score': 1.0, 'x': {'a': 1}}\n",
            "returned {'a': 1} (dict) as x, which is not a number",
        ),
        ("    return None\n", "returned None (NoneType), which is not a number"),
        ("    return {'acc': 1.0}\n", "returned a dict without the key 'score'; its keys: acc"),
        (
            "    return {'score': 1.0, 'n': 1} if solution_str else {'score': 0.0}\n",
            "row 0 with empty text: returned the keys score and in an earlier call n, score",
        ),
        (
            "    return 0.0\n",
            "4 of 4 reference answers do not score above other responses: row 0: the reference answer scores 0,",
        ),
        (
            "    return float(len(solution_str))\n",
            "row 0: the reference answer scores 15, a text of 100,000 characters 100000",
        ),
        (
            "    raise SystemExit(3)\n",
            "row 0 with the reference answer: SystemExit: 3 (include/rewards/own.py, line 2)",
        ),
        (
            "    import os; os._exit(3)\n",
            "row 0 with the reference answer: the reward ended its process with exit code 3",
        ),
        (
            "    import os; os._exit(0 if solution_str else 1)\n",
            "row 0 with the reference answer: the reward ended its process with exit code 0",
        ),
        (
            "    import signal; signal.alarm(1); signal.signal(signal.SIGALRM, print)\n",
            "ValueError: signal only works in main thread",
        ),
        ("    return no_such_name\n", "NameError: name 'no_such_name' is not defined"),
    ],
)
def test_a_reward_that_cannot_work_is_refused_with_row_and_line(
    refused: Any, body: str, message: str
) -> None:
    assert message in refused(own(HEAD + body))


def test_an_import_that_the_cluster_lacks_is_refused_with_the_module(refused: Any) -> None:
    text = refused(own("import no_such_module.part\n" + RIGHT))
    assert "cannot be imported in " in text and "No module named 'no_such_module'" in text
    assert "(include/rewards/own.py, line 1): install the package of no_such_module" in text


def test_a_reward_that_fails_while_it_is_loaded_is_refused_with_the_line(refused: Any) -> None:
    assert "ZeroDivisionError: division by zero (include/rewards/own.py, line 1)" in refused(
        own("1 / 0\n" + RIGHT)
    )


def test_a_reward_that_ends_the_process_while_it_is_loaded_is_refused(refused: Any) -> None:
    assert "while it was loaded: the reward ended its process with exit code 0" in refused(
        own("import os; os._exit(0)\n" + RIGHT)
    )


def test_a_call_of_more_than_a_second_is_refused_with_the_row(refused: Any) -> None:
    slow = RIGHT.replace(
        "    return", "    import time; time.sleep(1.1 if len(solution_str) > 9999 else 0)\n    return"
    )
    text = refused(own(slow), ROWS[:2])
    assert "with a text of 100,000 characters: a call takes 1.1 seconds" in text
    assert "2 of 8 calls take more than 1 second" in text


def test_a_call_that_is_slow_only_once_is_no_problem(check: Any) -> None:
    first = "    seen or time.sleep(1.1)\n    seen.append(1)\n    return"
    check(own("import time\nseen = []\n" + RIGHT.replace("    return", first)))


def test_a_call_that_hangs_in_a_regular_expression_is_ended_with_row_and_line(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child is a process of its own, so its limit is changed by a sitecustomize module."""
    (tmp_path / "sitecustomize.py").write_text(
        "import faulthandler as f\nlater = f.dump_traceback_later\n"
        "f.dump_traceback_later = lambda seconds, **more: later(1 if seconds == 30 else seconds, **more)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    body = "    import re; return float(bool(re.match('(a+)+$', 'a' * 40 + 'b')))\n"
    assert (
        "row 0 with the reference answer: no answer in 30 seconds (include/rewards/own.py, line 2)"
        in refused(own(HEAD + body))
    )


def test_a_few_wrong_rows_are_told_and_do_not_stop_the_run(
    check: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(n, str(n + 1), f"#### {n + 1 if n else 99}") for n in range(10)]
    check(own(RIGHT), rows)
    assert "warning: ppo.reward: 1 of 10 reference answers do not score above" in capsys.readouterr().out


def test_a_recipe_can_allow_what_the_trial_finds(check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check(own(HEAD + "    return 0.0\n"), mode="warn")
    assert "warning: ppo.reward failed its trial" in capsys.readouterr().out
    check(own("1 / 0\n"), mode="skip")
    assert "is not tried" in capsys.readouterr().out


@pytest.mark.parametrize(
    "reward",
    [
        {"terms": [{"name": "gsm8k", "options": {"method": "strict"}}]},
        {"terms": [{"name": "exact_match"}]},
        {"terms": [{"name": "exact_match", "options": {"answer": r"#### (\d+)"}}]},
        {"terms": [{"name": "format", "options": {"pattern": "x"}}]},
        {"terms": [{"name": "length_penalty", "options": {"free": 1, "full": 2}}]},
        {
            "terms": [
                {"name": "gsm8k", "options": {}},
                {"name": "length_penalty", "weight": 0.5, "options": {"free": 10, "full": 1000}},
                {"name": "own", "weight": 0.5},
            ],
            "files": {"own": RIGHT},
        },
    ],
)
def test_built_in_rewards_and_their_sums_pass_with_rows_that_have_responses(check: Any, reward: Any) -> None:
    check(reward)


def test_a_reward_that_ignores_the_truth_is_not_compared(
    check: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check({"terms": [{"name": "regex", "options": {"pattern": "x"}}]})
    assert "does not depend on the ground truth" in capsys.readouterr().out


def test_rows_without_responses_are_tried_with_the_form_that_the_reward_reads(check: Any) -> None:
    rows = [row(n, str(n)) for n in range(3)]
    check({"terms": [{"name": "gsm8k", "options": {}}]}, rows)
    check(own(RIGHT), rows)  # one of the guessed forms is right


def test_without_responses_a_function_of_unknown_form_is_not_refused(
    check: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check(own(RIGHT.replace("####", "=>")), [row(n, str(n)) for n in range(3)])
    assert "no reference answer is compared: the data have no responses" in capsys.readouterr().out


def test_a_constant_score_is_a_warning_where_the_right_answer_is_unknown(
    check: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check(own(HEAD + "    return 0.5\n"), [row(n, str(n)) for n in range(3)])
    assert "all 21 calls score 0.5, from which a model learns nothing" in capsys.readouterr().out
    check(own(RIGHT))
    assert "learns nothing" not in capsys.readouterr().out


def test_rows_without_a_truth_are_not_compared(check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check(own(HEAD + "    return 0.5\n"), [row(0, "", "a"), row(1, "", "b")])
    assert "2 of 2 rows have no ground truth" in capsys.readouterr().out


def test_gsm8k_without_a_reward_of_its_own_needs_no_trial(check: Any, tmp_path: Path) -> None:
    check(None, [row(0, "1", "#### 1") | {"data_source": "openai/gsm8k"}])
    assert not list(tmp_path.iterdir())


def test_settings_by_hand_are_left_to_verl(check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    check(None, **{"reward.custom_reward_function.path": "/x.py"})
    assert "reward.custom_reward_function.path) is not tried" in capsys.readouterr().out


def test_a_reward_model_must_exist_on_the_cluster(check: Any, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"ppo\.reward\.model: /no/model is no directory on this node"):
        check({"model": "/no/model"})
    check({"model": str(tmp_path)})
    check({**own(RIGHT), "model": str(tmp_path)})


def test_the_long_text_has_100_000_characters() -> None:
    assert len(trial_calls.LONG_TEXT) == 100_000


def test_another_rows_answer_is_a_different_one() -> None:
    rows = [row(0, "1", "a 1"), row(1, "1", "b 1"), row(2, "2", "a 2")]
    trial.plan(rows, own(RIGHT))
    assert [item["other"] for item in rows] == ["a 2", "a 2", "a 1"]


def test_the_answer_of_verls_own_gsm8k_rows_is_a_response() -> None:
    given = row(0, "1") | {"extra_info": {"answer": "#### 1"}}
    assert reference.of(given, None) == reference.Reference(["#### 1"])
