"""The score of the published model, from the results in its model card."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi, errors

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.hub import published
from llm_bridge.remote.node.hub.model_card import make_card


def result(**changes: Any) -> Any:
    values = {"metric_type": "gsm8k", "metric_name": None, "metric_value": 0.4, "dataset_revision": "hash"}
    return SimpleNamespace(**(values | {"metric_config": "conditions"} | changes))


def found(*results: Any) -> dict[str, Any]:
    return published.from_results("a/b", list(results), "gsm8k", "hash", "conditions")


def test_a_result_with_the_same_metric_on_the_same_data_is_comparable() -> None:
    other = result(metric_type="accuracy", metric_value=0.9)
    assert found(other, result()) == {"exists": True, "score": 0.4, "note": ""}
    assert found(result(metric_type="reward", metric_name="gsm8k"))["score"] == 0.4


@pytest.mark.parametrize(
    ("results", "note"),
    [
        ([], "the model card of a/b has no gsm8k"),
        ([result(metric_type="accuracy")], "the model card of a/b has no gsm8k"),
        ([result(dataset_revision="old")], "the model card of a/b has gsm8k on other data (old)"),
        (
            [result(metric_config="other")],
            "the model card of a/b has gsm8k with another reward or evaluate (rows, seed, samples, decoding) than this "
            "recipe, or with an older llm-bridge's",
        ),
    ],
)
def test_any_other_result_is_an_unknown_score_and_not_a_low_one(results: list[Any], note: str) -> None:
    made = found(*results)
    assert (made["exists"], made["score"]) == (True, None)
    assert made["note"].startswith(f"{note}. Set publish to always or approval for one run")


@pytest.mark.parametrize("models", [{"base": 0.1, "sft": 0.3}, {"base": 0.1, "sft": 0.3, "rl": 0.45}])
def test_the_score_in_a_runs_own_card_is_found_again(tmp_path: Path, models: dict[str, float]) -> None:
    """A run without RL publishes SFT's model."""
    evaluation = {
        "metric": "gsm8k+length_penalty",
        "rows": 10,
        "seed": 0,
        "data": {"path": "/w/data/x/test.parquet", "hash": "0123abcd"},
        "conditions": "c1",
        "models": {name: {"score": score, "interval": [score, score]} for name, score in models.items()},
        "differences": {"sft-base": {"mean": 0.2, "interval": [0.1, 0.3]}},
    }
    folder = tmp_path / "evaluate" / "attempt-1"
    folder.mkdir(parents=True)
    (folder / attempt_dir.RESULT).write_text(json.dumps({"evaluation": evaluation}))
    run = {"recipe": "r", "run": "n", "base_model": "a/b", "base_model_dir": "/w/models/a--b", "jobs": []}
    run |= {"data": {"sft": "/w/data/x"}, "evaluation": str(tmp_path / "evaluate")}
    card = make_card("me/model", run, is_adapter=False)
    last = list(models.values())[-1]
    assert published.from_card("me/model", card, "gsm8k+length_penalty", "0123abcd", "c1") == {
        "exists": True,
        "score": last,
        "note": "",
    }
    assert published.from_card("me/model", card, "math", "0123abcd", "c1")["score"] is None
    assert published.from_card("me/model", card, "gsm8k+length_penalty", "other", "c1")["score"] is None


@pytest.mark.parametrize(
    "card",
    [
        "# Mine",
        "---\nlicense: mit\n---\n# Mine",
        "---\nmodel-index: 7\n---\n",
        "---\nmodel-index:\n- name: m\n  results:\n  - nothing\n---\n",
    ],
)
def test_the_card_of_a_person_has_an_unknown_score(card: str) -> None:
    made = published.from_card("a/b", card, "gsm8k", "hash", "c1")
    assert made["score"] is None and "or remove that card from the Hub" in made["note"]
    damaged = card.replace("---\n", "---\ntags:\n- llm-bridge\n", 1)
    assert published.from_card("a/b", damaged, "gsm8k", "hash", "c1")["score"] is None


def answered(status: int, kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    return kind(f"{status}", response=httpx.Response(status, request=httpx.Request("GET", "https://h")))


def asked(monkeypatch: pytest.MonkeyPatch, error: Exception) -> dict[str, Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, "hf_hub_download", fail)
    return published.score("a/b", "gsm8k", "hash", "c1")


def test_only_a_repository_that_is_not_there_has_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, answered(404, errors.RepositoryNotFoundError))["exists"] is False
    files = [".gitattributes"]
    monkeypatch.setattr(HfApi, "list_repo_files", lambda *_, **__: files)
    empty = asked(monkeypatch, answered(404, errors.RemoteEntryNotFoundError))
    assert empty == {"exists": False, "score": None, "note": "a/b is empty"}
    files += ["model.safetensors"]
    without_card = asked(monkeypatch, answered(404, errors.RemoteEntryNotFoundError))
    assert (without_card["exists"], without_card["score"]) == (True, None)
    assert without_card["note"].startswith("a/b has no model card. Set publish")


@pytest.mark.parametrize(
    ("error", "kind", "retry"),
    [
        (answered(401, errors.RepositoryNotFoundError), "token_refused", False),
        (answered(403, errors.GatedRepoError), "token_refused", False),
        (answered(503, errors.HfHubHTTPError), "hub_unavailable", True),
        (httpx.ConnectError("no route"), "hub_unavailable", True),
        (errors.LocalEntryNotFoundError("no connection, and not in the cache"), "hub_unavailable", True),
    ],
)
def test_a_hub_that_does_not_answer_leaves_the_score_open(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, retry: bool
) -> None:
    """Otherwise the first model of a night without the Hub would count as better than none."""
    with pytest.raises(JobError, match=r"publish\.better_than: cannot read the model card of a/b") as raised:
        asked(monkeypatch, error)
    assert (raised.value.kind, raised.value.retry) == (kind, retry)
