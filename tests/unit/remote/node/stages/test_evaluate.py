"""Numbers of an evaluation; tests/verl/test_evaluate.py runs the program."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import StageResult
from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.evaluate import report
from llm_bridge.remote.node.evaluate.generate import Answer
from llm_bridge.remote.node.stages import evaluate

MODELS = {"base": "/m/base", "sft": "/m/sft", "rl": "/m/rl"}


def answers(text: str = "t") -> list[list[Answer]]:
    """Two answers to each of two prompts; one of four is cut."""
    return [
        [Answer(text, 10, False), Answer(text, 20, True)],
        [Answer(text, 5, False), Answer(text, 5, False)],
    ]


def summary(models: dict[str, str] = MODELS) -> dict[str, Any]:
    points = {
        "base": [[0.0, 0.0], [0.0, 1.0]],
        "sft": [[1.0, 0.0], [0.0, 1.0]],
        "rl": [[1.0, 1.0], [1.0, 1.0]],
    }
    return evaluate.summarize(models, {name: answers() for name in models}, points, {}, seed=0)


def test_a_model_has_score_interval_tokens_length_and_share_of_cut_answers() -> None:
    made = summary()["models"]
    assert made["rl"] == {
        "path": "/m/rl",
        "score": 1.0,
        "interval": [1.0, 1.0],
        "tokens": 40,
        "length_mean": 10.0,
        "cut_share": 0.25,
    }
    assert made["base"]["score"] == 0.25 and made["base"]["interval"] == [0.0, 0.5]


def test_answers_that_the_reward_never_scored_are_counted() -> None:
    made = evaluate.summarize(
        {"base": "/m"}, {"base": answers()}, {"base": [[0.0, 0.0]] * 2}, {"base": 3}, seed=0
    )
    assert made["models"]["base"]["reward_timeouts"] == 3
    lines = report.table({"metric": "gsm8k", "rows": 2, **made})
    assert lines[2].strip() == "3 answers count as 0: the reward did not end within its time limit"


def test_answers_of_a_model_are_kept_for_the_next_attempt_and_only_for_the_same_model_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    settings = {"answers_file": str(tmp_path / "stage" / "evaluation.json"), "tokenizer": str(model)}
    settings |= {"decoding": {"temperature": 0.0}, "trust_remote_code": False, "samples": 1, "seed": 0}
    settings |= {"device": "cpu", "gpus": 0}
    runs: list[Path] = []

    def generating(
        argv: list[str], **_: Any
    ) -> SimpleNamespace:  # the model itself: tests/verl/test_evaluate.py
        given = json.loads(Path(argv[-1]).read_text())
        runs.append(Path(argv[-1]))
        Path(given["answers"]).write_text(json.dumps([[["text", 1, False]]]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(evaluate.subprocess, "run", generating)
    monkeypatch.setattr(evaluate.metadata, "version", lambda name: "1")

    def made(number: int, **changes: Any) -> Any:
        attempt = tmp_path / "stage" / f"attempt-{number}"
        attempt.mkdir(parents=True)
        return evaluate._answers("sft", str(model), settings | changes, [[1, 2]], "transformers", attempt)

    assert made(1) == made(2) == [[Answer("text", 1, False)]] and len(runs) == 1
    made(3, seed=1)
    assert len(runs) == 2
    made(4, seed=1)
    assert len(runs) == 2
    (model / "config.json").write_text('{"other": 1}')
    made(5, seed=1)
    assert len(runs) == 3


def test_models_are_compared_pair_by_pair() -> None:
    made = summary()["differences"]
    assert {name: found["mean"] for name, found in made.items()} == {
        "rl-base": 0.75,
        "rl-sft": 0.5,
        "sft-base": 0.25,
    }
    assert made["rl-sft"]["interval"] == [0.5, 0.5]


def test_a_run_without_rl_compares_sft_with_the_base_model() -> None:
    made = summary({"base": "/m/base", "sft": "/m/sft"})
    assert list(made["models"]) == ["base", "sft"] and list(made["differences"]) == ["sft-base"]


@pytest.mark.parametrize(("count", "first"), [(3, [0, 1, 2]), (45, [0, 2, 4])])
def test_samples_are_spread_over_the_rows_and_short(count: int, first: list[int]) -> None:
    used = [
        {"number": i, "prompt": [{"role": "user", "content": f"q{i}"}], "ground_truth": i}
        for i in range(count)
    ]
    long = Answer("x" * 5000, 1, False)
    made = evaluate.side_by_side(used, {"base": [[long]] * count}, {"base": [[1.0]] * count})
    assert len(made) == min(count, evaluate.SAMPLES)
    assert [sample["prompt"] for sample in made[:3]] == [f"q{i}" for i in first]
    assert len(made[0]["answers"]["base"]["text"]) < 1100 and made[0]["truth"] == "0"


def test_the_hash_of_the_data_is_the_one_of_prepare(tmp_path: Path) -> None:
    file = tmp_path / "test.parquet"
    file.write_bytes(b"rows")
    of_file = evaluate.data_hash(file)
    attempt_dir.write_json(
        str(tmp_path / attempt_dir.STAGE_RESULT), attempt_dir.as_json(StageResult("h", {}, "h", ""))
    )
    assert evaluate.data_hash(file) == "h" != of_file


def test_a_model_that_is_missing_is_named_before_the_first_one_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, adapter = tmp_path / "base", tmp_path / "sft"
    good.mkdir()
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(
        evaluate.loadable, "problems", lambda path: [] if path == good else [f"{path} is no directory"]
    )
    monkeypatch.setattr(evaluate.loadable, "adapter_problems", lambda path: [])
    evaluate.check_models({"base": str(good), "sft": str(adapter)})
    with pytest.raises(
        JobError, match=r"the rl model .*/rl cannot be loaded: .*/rl is no directory"
    ) as raised:
        evaluate.check_models({"base": str(good), "sft": str(adapter), "rl": str(tmp_path / "rl")})
    assert raised.value.kind == "missing_path"


def test_a_harness_that_is_not_installed_is_a_result_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: None)
    made = evaluate.harness({"harness": ["hellaswag"], "models": MODELS}, tmp_path)
    assert "lm_eval is not installed in" in made["hellaswag"]["error"]
    assert evaluate.harness({"harness": []}, tmp_path) == {}


def test_the_harness_has_the_options_of_the_recipe_and_ends_at_its_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lm_eval itself is a stand-in: it is not among the pins of the environment."""
    commands: list[list[str]] = []

    def run(command: list[str], timeout: float | None) -> None:
        commands.append(command)
        assert timeout == 1800
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(evaluate.subprocess, "run", run)
    settings = {
        "harness": ["hellaswag"],
        "models": {"base": "/m"},
        "tokenizer": "/m",
        "trust_remote_code": True,
    }
    settings |= {"seed": 0, "device": "cpu", "harness_chat_template": True, "harness_hours": 0.5}
    made = evaluate.harness(settings, tmp_path)
    assert "ended after 0.5 hours, evaluate.harness_hours" in made["hellaswag"]["base"]["error"]
    assert "pretrained=/m,trust_remote_code=True" in commands[0] and "--apply_chat_template" in commands[0]


def test_the_newest_results_of_the_harness_count(tmp_path: Path) -> None:
    assert evaluate.harness_results(tmp_path) == {}
    for day, value in (("2026-11-01", 0.1), ("2026-11-02", 0.2)):
        file = tmp_path / "model" / f"results_{day}T00-00-00.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"results": {"hellaswag": {"acc,none": value}}}))
    assert evaluate.harness_results(tmp_path) == {"hellaswag": {"acc,none": 0.2}}


def test_the_table_has_a_line_for_each_model_and_difference() -> None:
    lines = report.table({"metric": "gsm8k", "rows": 2, **summary()})
    assert lines[0] == "evaluation: gsm8k on 2 rows, 95 % intervals"
    assert lines[1] == "  base     0.2500  [0.0000, 0.5000]  10 tokens per answer, 25.0% cut"
    assert lines[5] == "  rl-sft   +0.5000  [+0.5000, +0.5000]"


@pytest.mark.parametrize(
    "change",
    [
        {"reward": {"terms": [{"name": "gsm8k", "method": "flexible"}]}},
        {"rows": None},
        {"decoding": {"temperature": 0.0, "max_tokens": 16}},
    ],
)
def test_scores_of_another_reward_other_rows_or_decoding_are_not_compared(change: dict[str, Any]) -> None:
    settings = {
        "reward": {"terms": [{"name": "gsm8k", "method": "strict"}]},
        "rows": 500,
        "seed": 0,
        "samples": 1,
        "decoding": {"temperature": 0.0, "max_tokens": 512},
        "chat_template": None,
        "template_options": {},
    }
    assert evaluate.conditions_hash({**settings, "gpus": 1}) == evaluate.conditions_hash(settings)
    assert evaluate.conditions_hash({**settings, **change}) != evaluate.conditions_hash(settings)
