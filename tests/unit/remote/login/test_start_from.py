"""Helper start_from: finished stages of another run, a model, checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.remote import attempt_dir
from llm_bridge.remote.attempt_dir import Provenance, StageResult
from llm_bridge.remote.login import start_from
from llm_bridge.remote.messages import StartAnswer, StartRequest, decode, encode


def ask(path: Path, stage: str, *, is_run: bool = True) -> StartAnswer:
    request = StartRequest("start_from in the trigger form", stage, str(path), is_run)
    answer: StartAnswer = decode(StartAnswer, start_from.main(encode(request)))
    return answer


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def model(path: Path) -> Path:
    write(path / "config.json", {"model_type": "llama"})
    write(path / "model.safetensors", "weights")
    return path


def checkpoints(path: Path) -> Path:
    write(path / "latest_checkpointed_iteration.txt", "4")
    write(path / "global_step_4/actor/fsdp_config.json", {"world_size": 2})
    for rank in range(2):
        write(path / f"global_step_4/actor/model_world_size_2_rank_{rank}.pt", "shard")
    return path


def finish(stage: Path, settings: dict[str, Any], inputs: dict[str, str] | None = None) -> None:
    """Write what a finished stage has, as the helper submit and its job do."""
    result = StageResult("f" * 64, dict(inputs or {}), f"{stage.name} by attempt-1", "attempt-1")
    write(stage / attempt_dir.STAGE_RESULT, attempt_dir.as_json(result))
    provenance = Provenance("f" * 64, dict(inputs or {}), "attempt-1")
    write(stage / attempt_dir.PROVENANCE, attempt_dir.as_json(provenance))
    write(stage / "attempt-1" / attempt_dir.SETTINGS, settings)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "dag" / "other"
    finish(run / "sft", {"model_path": "/models/base"})
    finish(run / "sft/merge", {}, {str(run / "sft"): "sft by attempt-1"})
    model(run / "sft/model")
    finish(run / "ppo", {"actor_path": f"{run}/sft/model"}, {str(run / "sft/merge"): "merge by attempt-1"})
    checkpoints(run / "ppo/checkpoints")
    finish(run / "merge", {}, {str(run / "ppo"): "ppo by attempt-1"})
    model(run / "merge/model")
    return run


@pytest.mark.parametrize("stage", ["ppo", "merge", "evaluate", "upload"])
def test_a_finished_run_is_taken_over_with_its_results_and_origins(run: Path, stage: str) -> None:
    answer = ask(run, stage)
    assert not answer.problems
    assert set(answer.results) == {"sft", "ppo", "merge"} and answer.base_model == "/models/base"
    assert answer.ppo_from == (f"{run}/sft/model" if stage == "merge" else "")


def test_a_folder_without_a_result_is_not_taken_over(run: Path) -> None:
    (run / "sft/merge" / attempt_dir.STAGE_RESULT).unlink()
    (problem,) = ask(run, "ppo").problems
    assert (
        "start_from in the trigger form: run other has no finished stage 'sft', from which 'ppo'" in problem
    )
    assert f"{run}/sft/merge has no stage_result.json" in problem


def test_a_result_whose_input_is_made_again_is_not_taken_over(run: Path) -> None:
    (run / "ppo" / attempt_dir.STAGE_RESULT).unlink()  # as the helper submit does for the next attempt
    for stage in ("merge", "evaluate"):
        (problem,) = ask(run, stage).problems
        assert "Finished in that run: sft" in problem


def test_data_that_were_removed_since_change_nothing(run: Path, tmp_path: Path) -> None:
    finish(run / "sft", {"model_path": "/models/base"}, {str(tmp_path / "data/gone"): "hash"})
    assert not ask(run, "ppo").problems


def test_a_run_with_rl_is_not_taken_over_with_its_sft_model_instead(run: Path) -> None:
    shutil.rmtree(run / "merge")
    assert "no finished stage 'merge'" in ask(run, "evaluate").problems[0]
    shutil.rmtree(run / "ppo")
    assert ask(run, "evaluate").results == {"sft": "merge by attempt-1"}


def test_an_output_that_is_cut_off_is_not_taken_over(run: Path) -> None:
    (run / "sft/model/model.safetensors").write_text("")
    assert "its output is not complete: the weights are missing" in ask(run, "ppo").problems[0]
    (run / "ppo/checkpoints/global_step_4/actor/model_world_size_2_rank_1.pt").unlink()
    assert "step 4 is incomplete: model_world_size_2_rank_1.pt" in ask(run, "merge").problems[0]


def test_a_run_that_does_not_exist_is_reported_with_those_that_do(run: Path) -> None:
    (problem,) = ask(run.with_name("othr"), "ppo").problems
    assert "the cluster has no run othr in" in problem and "the newest runs there: other" in problem


def test_a_model_is_identified_by_its_files(tmp_path: Path) -> None:
    path = model(tmp_path / "m")
    first = ask(path, "ppo", is_run=False)
    assert first.id and first == ask(path, "evaluate", is_run=False)
    (path / "model.safetensors").write_text("other weights")
    assert ask(path, "ppo", is_run=False).id != first.id


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "no such directory"),
        ({"x": ""}, "config.json is missing"),
        ({"adapter_config.json": "{}"}, "it is a LoRA adapter, which has to be merged first"),
        ({"config.json": "{}"}, "the weights are missing"),
        (
            {
                "config.json": "{}",
                "model.safetensors.index.json": '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}',
                "1.safetensors": "x",
            },
            "2.safetensors is missing or empty",
        ),
    ],
)
def test_an_incomplete_model_is_refused(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    for name, text in files.items():
        write(tmp_path / "m" / name, text)
    assert problem in ask(tmp_path / "m", "ppo", is_run=False).problems[0]


def test_the_model_of_a_run_that_is_not_finished_is_refused(run: Path) -> None:
    assert not ask(run / "sft/model", "ppo", is_run=False).problems
    (run / "sft/merge" / attempt_dir.STAGE_RESULT).unlink()
    assert "has not finished" in ask(run / "sft/model", "ppo", is_run=False).problems[0]


def test_checkpoints_are_taken_when_the_newest_one_is_complete(run: Path) -> None:
    path = run / "ppo/checkpoints"
    assert ask(path, "merge", is_run=False).id
    assert "give the directory that has it" in ask(run / "ppo", "merge", is_run=False).problems[0]
    (path / "global_step_4/actor/fsdp_config.json").unlink()
    assert "is no checkpoint of verl's RL" in ask(path, "merge", is_run=False).problems[0]
