"""Data of own files, prepared with the cluster's Python: held out, mixed, dropped, refused, and reported."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.data import Data
from testing.paths import PLUGINS
from tests.verl.support import attempt, data_entry

# Prints what was built, or the error; pyarrow is in the cluster's environment only.
BUILD = """
import json, pathlib, sys
from llm_bridge.remote.node.common.job_io import JobError
from llm_bridge.remote.node.data import build
import pyarrow.parquet
scratch = pathlib.Path(sys.argv[1])
(scratch / "ready").mkdir(parents=True)
build.CHUNK_ROWS = 7
try:
    made = build.build(json.loads(sys.argv[2]), scratch / "ready", scratch, scratch / "final")
except JobError as error:
    made = {"error": str(error)}
else:
    rows = {s: pyarrow.parquet.read_table(scratch / "ready" / f"{s}.parquet").to_pylist() for s in build.SPLITS}
    made["made"] = rows
print(json.dumps(made))
"""

Build = Callable[..., dict[str, Any]]


@pytest.fixture
def build(cluster_python: str, tmp_path: Path) -> Build:
    """Build data as the recipe's ``data`` describes them."""
    number = 0

    def run(**given: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        specification = json.dumps(Data(**given).specification())
        argv = [cluster_python, "-c", BUILD, str(tmp_path / f"scratch{number}"), specification]
        environ = {**os.environ, "PYTHONPATH": str(PLUGINS)}
        done = subprocess.run(argv, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return made

    return run


def chat(path: Path, questions: list[str], answer: str = "yes") -> Path:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": answer}]}
        for q in questions
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prompt"][-1]["content"] for row in rows]


def test_a_part_is_held_out_by_the_prompt_and_stays_the_same_with_more_rows(
    build: Build, tmp_path: Path
) -> None:
    questions = [f"question {n}" for n in range(100)]
    file = chat(tmp_path / "a.jsonl", questions)
    given = {"source": str(file), "format": "chat", "test_fraction": 0.2}
    first = build(**given)
    train, test = (prompts(first["made"][split]) for split in ("train", "test"))
    assert sorted(train + test) == sorted(questions) and 10 < len(test) < 30
    assert [row["extra_info"]["index"] for row in first["made"]["train"]] == list(range(len(train)))
    assert build(**given)["hash"] == first["hash"]
    chat(file, [*questions, "one more"])
    more = build(**given)
    assert set(test) <= set(prompts(more["made"]["test"])) and more["hash"] != first["hash"]
    few = build(source=str(chat(tmp_path / "few.jsonl", ["a", "b", "c"])), format="chat")
    assert few["rows"] == {"train": 2, "test": 1}, "never empty"


def test_sources_are_mixed_by_their_weights_all_through_the_file(build: Build, tmp_path: Path) -> None:
    files = [chat(tmp_path / f"{name}.jsonl", [f"{name}{n}" for n in range(40)]) for name in "ab"]
    sources = [{"source": str(files[0]), "weight": 2}, {"source": str(files[1]), "max_rows": 10}]
    made = build(sources=sources, format="chat")
    train = prompts(made["made"]["train"])
    a = [text for text in train if text[0] == "a"]
    assert len(train) - len(a) == 10 and len(a) == 2 * len(set(a))
    # In each quarter of the file as many of the smaller source, give or take what rounding makes of it.
    quarter = len(train) // 4
    for n in range(4):
        assert 1 <= sum(text[0] == "b" for text in train[n * quarter : (n + 1) * quarter]) <= 4


def test_duplicates_and_leaks_are_counted_and_dropped_or_refused_as_the_recipe_says(
    build: Build, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    chat(folder / "train.jsonl", ["a", "b", "a", "c"])
    chat(folder / "test.jsonl", ["b"], answer="no")
    given = {"source": str(folder), "format": "chat"}
    kept = build(**given)
    assert (kept["duplicates"], kept["leaked"], kept["rows"]["train"]) == (1, 1, 4)
    dropped = build(**given, duplicates="drop", leaked="drop")
    assert prompts(dropped["made"]["train"]) == ["a", "c"]
    refused = build(**given, duplicates="refuse")["error"]
    assert f"{folder}/train.jsonl, line 3" in refused and "set data.duplicates to drop or keep" in refused
    refused = build(**given, leaked="refuse")["error"]
    assert f"{folder}/train.jsonl, line 2" in refused


def test_rows_in_verls_own_shape_stay_as_they_are(build: Build, tmp_path: Path) -> None:
    rows = [
        {
            "data_source": "mine",
            "prompt": [{"role": "user", "content": f"q{n}"}],
            "ability": "x",
            "reward_model": {"style": "rule", "ground_truth": n},
            "extra_info": {"index": 100 + n, **({"late": True} if n > 20 else {})},
        }
        for n in range(30)
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = build(source=str(file), format="verl")["made"]
    found = sorted([*made["train"], *made["test"]], key=lambda row: row["extra_info"]["index"])
    late = [{**row, "extra_info": {"late": None, **row["extra_info"]}} for row in rows]
    assert found == late, "a field that only later rows have is kept"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "the split train has no rows"),
        ([{"q": "", "a": "x"}, {"q": "x"}], "line 1: q is empty\n  - line 2: has no column a; it has q"),
        ([{"q": "x", "a": "y"}] * 3, "all its 3 rows have the same prompt"),
    ],
)
def test_data_that_cannot_be_used_are_refused_with_file_and_line(
    rows: list[dict[str, Any]], problem: str, build: Build, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = build(source=str(file), format="columns", columns={"prompt": "q", "response": "a"})["error"]
    assert problem in error and str(file) in error


def test_the_report_has_the_models_tokens_and_rows_as_it_sees_them(
    launch: Callable[..., Any], assets: Path, tmp_path: Path
) -> None:
    file = chat(tmp_path / "a.jsonl", [*(f"question {n}" for n in range(50)), "a long question " * 100])

    def prepare(name: str, **given: Any) -> Any:
        entry = data_entry(tmp_path / name / "data", file, format="chat", **given)
        settings = {
            "data": [entry],
            "base_model": str(assets / "tiny-llama"),
            "model_dir": str(tmp_path / "model"),
        }
        training = {
            **{key: str(tmp_path) for key in ("model_path", "checkpoint_dir")},
            **{
                key: f"{entry['directory']}/{split}.parquet"
                for key, split in (("train_files", "train"), ("val_files", "test"))
            },
            **{"device": "cpu", "logger": ["console"], "project_name": "p", "experiment_name": "e"},
            **{"nodes": 1, "gpus_per_node": 1, "verl": {"data.max_length": 256, "data.train_batch_size": 8}},
        }
        settings |= {"trust_remote_code": False, "trainings": {"sft": training}}
        settings |= {"chat_templates": {"sft.verl.model.custom_chat_template": None}}
        path = attempt(tmp_path / name, "prepare", settings)
        done = launch("prepare", path)
        return json.loads((path.parent / ("reason.json" if done.returncode else "result.json")).read_text())

    assert (
        "1 of " in prepare("keep")["reason"] and "verl would stop at the first" in prepare("keep")["reason"]
    )
    report = prepare("drop", too_long="drop")["data"]["sft"]["report"]
    assert (report["too_long"], report["over_limit"], report["limit"]) == (1, 0, 256)
    assert report["rows"]["train"] + report["rows"]["test"] == 50
    assert 0 < report["tokens"]["p50"] <= report["tokens"]["p95"] <= report["tokens"]["max"] < 256
    assert len(report["sample"]) == 5 and "question " in report["sample"][0]
