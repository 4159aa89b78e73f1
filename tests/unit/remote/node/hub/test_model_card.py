"""The generated model card."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import ModelCard

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.node.hub.model_card import check_metadata, is_generated, make_card, score
from llm_bridge.remote.node.hub.upload_errors import BadInput

HUB = "https://hub.example.org"


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """A finished training of a model from the Hub, with its evaluation."""
    put(tmp_path / "base" / ".llm_bridge_source.json", {"revision": "base123"})
    marker = {"source": "openai/gsm8k", "revision": "data456", "hash": "h789"}
    put(tmp_path / "data" / ".llm_bridge_source.json", marker)
    attempt = tmp_path / "sft" / "attempt-1"
    put(attempt / attempt_dir.JOB_ID, "4711\n")
    put(attempt / attempt_dir.STARTED, {"job_id": "4711", "started": 1000.0, "nodes": "n1"})
    put(attempt / attempt_dir.OUTCOME, {"exit_code": 0, "ended": 1000.0 + 3600})
    put(tmp_path / "sft" / "ray-1" / attempt_dir.RAY_JOB_ID, "post_training.r.ppo.1")
    put(tmp_path / "sft" / "ray-resubmit-1" / attempt_dir.RAY_JOB_ID, "post_training.r.wait_ppo.1")
    scores = {
        "base": {"score": 0.25, "interval": [0.2, 0.3]},
        "rl": {"score": 0.5, "interval": [0.45, 0.55]},
    }
    evaluation = {
        "metric": "accuracy", "rows": 200, "seed": 1, "data": {"path": str(tmp_path / "test.parquet"), "hash": "t1"},
        "models": scores,
    }  # fmt: skip
    put(tmp_path / "evaluate" / "attempt-1" / attempt_dir.RESULT, {"evaluation": evaluation})
    return {
        "recipe": "gsm8k", "description": "Arithmetic", "run": "run 1", "base_model": "meta/llama",
        "base_model_dir": str(tmp_path / "base"), "data": {"sft": str(tmp_path / "data")},
        "jobs": [{"name": "sft", "directory": str(tmp_path / "sft"), "gpus": 8}],
        "evaluation": str(tmp_path / "evaluate"),
    }  # fmt: skip


def test_the_card_names_the_hash_of_an_environment_that_install_environment_has_built(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert "* Environment: " not in make_card("me/model", run, is_adapter=False)
    put(tmp_path / attempt_dir.ENVIRONMENT, {"hash": "1a2b3c4d5e6f"})
    assert "* Environment: `1a2b3c4d5e6f`\n" in make_card("me/model", run, is_adapter=False)


def test_the_card_has_the_results_of_the_harness(run: dict[str, Any]) -> None:
    assert "lm-evaluation-harness" not in make_card("me/model", run, is_adapter=False)
    result = Path(run["evaluation"], "attempt-1", attempt_dir.RESULT)
    written = json.loads(result.read_text())
    written["evaluation"]["harness"] = {
        "hellaswag": {
            "base": {"alias": "hellaswag", "acc,none": 0.25, "acc_stderr,none": 0.01},
            "rl": {"error": "lm_eval wrote no result"},
        },
        "mmlu": {"error": "lm_eval is not installed"},
    }
    put(result, written)
    assert (
        "| task | metric | base | rl |\n|---|---|---|---|\n| hellaswag | acc,none | 0.2500 |  |\n\n"
        in make_card("me/model", run, is_adapter=False)
    )


def test_the_card_has_the_hubs_metadata_with_the_evaluation_as_a_result(run: dict[str, Any]) -> None:
    data = ModelCard(make_card("me/model", run, is_adapter=False)).data
    assert (data.base_model, data.datasets, data.library_name) == (
        "meta/llama",
        ["openai/gsm8k"],
        "transformers",
    )
    [result] = data.eval_results or []
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.5)


def test_the_card_names_origin_data_jobs_scores_and_how_to_load_the_model(
    run: dict[str, Any], tmp_path: Path
) -> None:
    text = make_card("me/model", run, is_adapter=False)
    for part in (
        "meta/llama at `base123`",
        "openai/gsm8k at `data456`, hash `h789`",
        "Recipe: gsm8k",
        "| sft | 4711 | 8.00 |",
        "Ray jobs in them: `post_training.r.ppo.1`, `post_training.r.wait_ppo.1`.",
        "| rl | 0.5000 | 0.4500 to 0.5500 |",
        'AutoModelForCausalLM.from_pretrained("me/model")',
    ):
        assert part in text
    assert str(tmp_path) not in text, "directories of the cluster are not published"


def test_the_card_links_the_wandb_runs_that_are_online(run: dict[str, Any], tmp_path: Path) -> None:
    assert "W&B" not in make_card("me/model", run, is_adapter=False)
    url = "https://wandb.example/me/project/runs/r-sft-1"
    put(tmp_path / "sft" / "attempt-1" / attempt_dir.WANDB_RUN, {"id": "r-sft-1", "url": url})
    put(tmp_path / "sft" / "attempt-2" / attempt_dir.WANDB_RUN, {"id": "r-sft-1", "url": url})
    put(tmp_path / "sft" / "ray-1" / attempt_dir.WANDB_RUN, {"id": "offline", "url": None})
    assert f"Curves in W&B: [sft]({url})." in make_card("me/model", run, is_adapter=False)


def test_the_same_training_gives_the_same_card(run: dict[str, Any]) -> None:
    assert make_card("me/model", run, is_adapter=False) == make_card("me/model", run, is_adapter=False)


def test_metadata_that_the_hub_refuses_are_wrong_input(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = '{"errors": [{"message": "\\"license\\" is wrong"}]}'
    answers, asked = [httpx.Response(code, text=problem) for code in (200, 404, 400)], []

    def post(url: str, json: dict[str, str]) -> httpx.Response:
        asked.append((url, json["repoType"]))
        answer = answers.pop(0)
        answer.request = httpx.Request("POST", url)
        return answer

    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(post=post))
    card = tmp_path / "README.md"
    card.write_text(make_card("me/model", run, is_adapter=False))
    check_metadata(card, HUB)
    check_metadata(card, HUB)  # a mirror that does not validate
    with pytest.raises(BadInput, match=r'README.md: the metadata .* is wrong: "license" is wrong\n'):
        check_metadata(card, HUB)
    assert asked == [(f"{HUB}/api/validate-yaml", "model")] * 3, "and not huggingface.co"
    card.write_text("---\ntags: [\n---\n")
    with pytest.raises(BadInput, match="while parsing a flow"):
        check_metadata(card, HUB)


def test_the_score_is_that_of_the_published_model(run: dict[str, Any]) -> None:
    assert score(run) == 0.5
    assert score({**run, "evaluation": "/nowhere"}) is None


def test_all_sources_of_mixed_data_are_named_without_directories_of_the_cluster(
    run: dict[str, Any], tmp_path: Path
) -> None:
    marker = {
        "source": "/data/anna/chat.jsonl",
        "sources": ["/data/anna/chat.jsonl", "a/b"],
        "revision": None,
    }
    put(tmp_path / "data" / ".llm_bridge_source.json", {**marker, "revisions": {"a/b": "r1"}, "hash": "h1"})
    card = ModelCard(make_card("me/model", run, is_adapter=False))
    assert card.data.datasets == ["a/b"]
    assert "chat.jsonl, a/b at `r1`, hash `h1`" in card.text and "/data/anna" not in card.text


def test_gpu_hours_of_a_job_that_was_lost_with_its_node_are_unknown(
    run: dict[str, Any], tmp_path: Path
) -> None:
    attempt = tmp_path / "sft" / "attempt-2"
    put(attempt / attempt_dir.JOB_ID, "4712\n")
    put(attempt / attempt_dir.STARTED, {"job_id": "4712", "started": 1000.0, "nodes": "n1"})
    put(tmp_path / "sft" / "attempt-3" / attempt_dir.JOB_ID, "4713\n")
    text = make_card("me/model", run, is_adapter=False)
    assert "| sft | 4712 | unknown |" in text and "| all | | at least 8.00 |" in text
    assert "4713" not in text, "it never started"


def test_a_card_needs_neither_an_evaluation_nor_files_of_the_jobs(
    run: dict[str, Any], tmp_path: Path
) -> None:
    run |= {"evaluation": None, "base_model": "/shared/my-base", "base_model_dir": "/shared/my-base"}
    run |= {"data": {"sft": "/nowhere"}, "jobs": [{"name": "sft", "directory": "/nowhere", "gpus": 1}]}
    card = ModelCard(make_card("me/model", run, is_adapter=True))
    assert card.data.base_model is None and not card.data.eval_results
    assert "Base model: my-base" in card.text and "/shared" not in card.text
    assert "AutoPeftModelForCausalLM" in card.text


def test_a_persons_card_is_told_from_a_generated_one(run: dict[str, Any]) -> None:
    assert is_generated(make_card("me/model", run, is_adapter=False))
    for text in (
        "# My model\n",
        "---\nlicense: mit\ntags:\n- mine\n---\n# My model\n",
        "---\n- [\n---\n",
        "",
    ):
        assert not is_generated(text)
