"""Program prepare, run as the job runs it: from directories, and from a Hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.config.loader import load_recipe
from testing.paths import ROOT
from tests.unit.remote.node.support import ppo_settings, sft_settings
from tests.verl.support import attempt, data_entry

Launch = Callable[..., subprocess.CompletedProcess[str]]
TOKEN = "hf_demoWritesHere"


@pytest.fixture(scope="module")
def hub(
    assets: Path, cluster_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The test Hub with demo/tiny-llama and demo/gsm8k-tiny; the variables that lead there."""
    root = tmp_path_factory.mktemp("hub")
    (root / "accounts.json").write_text(json.dumps({TOKEN: {"user": "demo", "role": "write", "orgs": []}}))
    argv = [sys.executable, "-m", "testing.local_hub", "--root", str(root / "data"), "--port", "0"]
    argv += ["--tokens", str(root / "accounts.json")]
    log = (root / "log").open("w")
    server = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert " at " in line, (root / "log").read_text()
        variables = {
            "HF_ENDPOINT": line.split(" at ")[1].split()[0],
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }
        upload = """
import sys
from huggingface_hub import HfApi
api = HfApi()
for name, kind in (("tiny-llama", "model"), ("gsm8k-tiny", "dataset")):
    api.create_repo(f"demo/{name}", repo_type=kind, private=True)
    api.upload_folder(repo_id=f"demo/{name}", repo_type=kind, folder_path=f"{sys.argv[1]}/{name}")
"""
        environ = {**os.environ, **variables, "HF_HOME": str(root / "hf")}
        done = subprocess.run(
            [cluster_python, "-c", upload, str(assets)], env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        yield variables
    finally:
        server.terminate()
        server.wait(timeout=20)
        log.close()


def wanted(shared: Path, data: Any = "demo/gsm8k-tiny", model: Any = "demo/tiny-llama") -> dict[str, Any]:
    return {
        "data": [data_entry(shared / "data" / "set", data)],
        "base_model": str(model),
        "model_dir": str(shared / "models" / "model"),
        "trust_remote_code": False,
        "trainings": {},
        "chat_templates": {"sft.verl.model.custom_chat_template": None},
    }


def local(shared: Path, assets: Path) -> dict[str, Any]:
    return wanted(shared, assets / "gsm8k-tiny", assets / "tiny-llama")


def outcome(settings: Path, name: str = "result") -> Any:
    return json.loads((settings.parent / f"{name}.json").read_text())


def rows(python: str, path: str) -> list[dict[str, Any]]:
    code = "import pandas, sys; print(pandas.read_parquet(sys.argv[1]).to_json(orient='records'))"
    return json.loads(subprocess.run([python, "-c", code, path], capture_output=True, check=True).stdout)


def test_data_and_model_of_directories_are_ready_for_sft_and_ppo(
    launch: Launch, assets: Path, tmp_path: Path, cluster_python: str
) -> None:
    settings = attempt(tmp_path, "prepare", local(tmp_path, assets))
    done = launch("prepare", settings)
    assert done.returncode == 0, done.stderr
    result = outcome(settings)
    assert result["model_path"] == str(assets / "tiny-llama"), "an absolute path is used where it is"
    assert result["skipped"] == ["model"]
    ready = result["data"]["sft"]
    train, test = rows(cluster_python, ready["train_files"]), rows(cluster_python, ready["val_files"])
    assert (len(train), len(test)) == (64, 16)
    first = train[0]
    assert first["data_source"] == "openai/gsm8k" and first["ability"] == "math"
    answer = first["extra_info"]["answer"]
    assert answer.endswith(f"#### {first['reward_model']['ground_truth']}")
    assert first["extra_info"] == {**first["extra_info"], "split": "train", "index": 0}
    assert [m["role"] for m in first["messages"]] == ["user", "assistant"]
    assert first["messages"][1]["content"] == answer
    assert first["prompt"] == first["messages"][:1]
    assert first["prompt"][0]["content"].startswith(first["extra_info"]["question"])


def test_existing_data_and_model_are_kept(launch: Launch, assets: Path, tmp_path: Path) -> None:
    settings = attempt(tmp_path, "prepare", local(tmp_path, assets))
    launch("prepare", settings)
    train = outcome(settings)["data"]["sft"]["train_files"]
    before = os.stat(train).st_mtime_ns
    again = launch("prepare", settings)
    assert outcome(settings)["skipped"] == ["data", "model"]
    assert os.stat(train).st_mtime_ns == before
    assert "to fetch it again, remove it" in again.stdout


def test_both_come_from_the_hub_at_a_commit_that_is_recorded(
    launch: Launch, hub: dict[str, str], tmp_path: Path
) -> None:
    settings = attempt(tmp_path, "prepare", wanted(tmp_path))
    done = launch("prepare", settings, **hub)
    assert done.returncode == 0, done.stdout + done.stderr
    model = tmp_path / "models" / "model"
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {f.name for f in model.iterdir()}
    for directory in (model, tmp_path / "data" / "set"):
        marker = json.loads((directory / ".llm_bridge_source.json").read_text())
        assert len(marker["revision"]) == 40
    assert sorted(f.name for f in (tmp_path / "data").iterdir()) == ["set"], "no half-made directories stay"
    away = launch("prepare", settings, **{**hub, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert (away.returncode, outcome(settings)["skipped"]) == (0, ["data", "model"]), (
        "the Hub is not asked again"
    )


@pytest.mark.parametrize(
    ("variables", "texts"),
    [
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            ["cannot be reached from", "no internet", "data.source", "hf download"],
        ),
        ({"HF_HUB_OFFLINE": "1"}, ["cannot be reached", "hf download"]),
        ({"HF_TOKEN": "hf_wrong"}, ["refused the token", "hub.conn_id"]),
        ({"HF_TOKEN": ""}, ["HF_TOKEN is not set"]),
        ({"HF_TOKEN": "hf_a hf_b"}, ["has blanks", "HF_TOKEN"]),
    ],
)
def test_an_unusable_hub_is_reported_with_the_next_action(
    variables: dict[str, str],
    texts: list[str],
    launch: Launch,
    hub: dict[str, str],
    tmp_path: Path,
) -> None:
    settings = attempt(tmp_path, "prepare", wanted(tmp_path))
    done = launch("prepare", settings, **{**hub, **variables})
    assert done.returncode == 1
    reason = outcome(settings, "reason")["reason"]
    assert all(text in reason for text in texts), reason
    assert "Traceback" not in done.stderr and TOKEN not in done.stderr
    assert "hf_a" not in done.stdout + done.stderr + reason
    assert not (settings.parent / "result.json").exists()


def test_a_repository_that_does_not_exist_is_reported(
    launch: Launch, hub: dict[str, str], assets: Path, tmp_path: Path
) -> None:
    settings = attempt(tmp_path, "prepare", wanted(tmp_path, assets / "gsm8k-tiny", "demo/nothing"))
    launch("prepare", settings, **hub)
    assert "base_model" in outcome(settings, "reason")["reason"]
    assert "has no model demo/nothing" in outcome(settings, "reason")["reason"]


def test_two_runs_that_prepare_the_same_at_once_both_succeed(
    hub: dict[str, str], command: list[str], tmp_path: Path
) -> None:
    environ = {**os.environ, **hub}
    files = [attempt(tmp_path, f"prepare{n}", wanted(tmp_path)) for n in range(2)]
    both = [
        subprocess.Popen([*command, "prepare", str(f)], env=environ, stderr=subprocess.PIPE, text=True)
        for f in files
    ]
    errors = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sorted(f.name for f in (tmp_path / "models").iterdir()) == [".model.lock", "model"]


def change(python: str, path: Path, code: str) -> None:
    code = f"import pandas; t = pandas.read_parquet({str(path)!r}); {code}; t.to_parquet({str(path)!r})"
    subprocess.run([python, "-c", code], check=True)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("t = t.rename(columns={'answer': 'solution'})", "has no column answer; it has question, solution"),
        ("t.loc[3, 'answer'] = 'twelve'", "row 3: the answer has no '#### NUMBER'"),
        ("t.loc[3, 'answer'] = '#### 3/4'", "row 3: the answer ends in '#### 3/4', which is not one number"),
        ("t.loc[[3, 5], 'question'] = None", "row 3: question is null\n  - row 5: question is null"),
        ("t['answer'] = 7", "row 0: answer is not text but 7"),
        ("t = t[:0]", "the split test has no rows"),
        ("t['answer'] = [b'\\xff#### 7'] * len(t)", "row 0: answer is not UTF-8"),
    ],
)
def test_data_of_another_shape_are_refused_with_file_and_row(
    code: str, text: str, launch: Launch, assets: Path, tmp_path: Path, cluster_python: str
) -> None:
    data = Path(shutil.copytree(assets / "gsm8k-tiny", tmp_path / "own"))
    change(cluster_python, data / "main" / "test-00000-of-00001.parquet", code)
    settings = attempt(tmp_path, "prepare", wanted(tmp_path, data, assets / "tiny-llama"))
    launch("prepare", settings)
    reason = outcome(settings, "reason")["reason"]
    assert text in reason and "test-00000-of-00001.parquet" in reason


def test_of_data_without_a_test_split_a_part_is_held_out(
    launch: Launch, assets: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(assets / "gsm8k-tiny", tmp_path / "own"))
    (data / "main" / "test-00000-of-00001.parquet").unlink()
    settings = attempt(tmp_path, "prepare", wanted(tmp_path, data, assets / "tiny-llama"))
    launch("prepare", settings)
    report = outcome(settings)["data"]["sft"]["report"]
    assert report["rows"]["test"] == report["held_out"] > 0
    assert sum(report["rows"].values()) == 64


def test_a_directory_that_holds_other_data_is_not_overwritten(
    launch: Launch, assets: Path, tmp_path: Path
) -> None:
    settings = attempt(tmp_path, "prepare", local(tmp_path, assets))
    launch("prepare", settings)
    other = Path(shutil.copytree(assets / "gsm8k-tiny", tmp_path / "own"))
    settings = attempt(tmp_path, "prepare", wanted(tmp_path, other, assets / "tiny-llama"))
    assert launch("prepare", settings).returncode == 1
    assert f"this run needs {{'source': '{other}'" in outcome(settings, "reason")["reason"]


@pytest.mark.parametrize(
    ("lost", "text"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "the tokenizer is missing"),
        ("model.safetensors", "the weights are missing"),
        (None, "No such file or directory"),
    ],
)
def test_a_path_that_is_no_model_is_refused(
    lost: str | None, text: str, launch: Launch, assets: Path, tmp_path: Path
) -> None:
    model = tmp_path / "own"
    if lost:
        shutil.copytree(assets / "tiny-llama", model)
        (model / lost).unlink()
    settings = attempt(tmp_path, "prepare", {**local(tmp_path, assets), "base_model": str(model)})
    launch("prepare", settings)
    reason = outcome(settings, "reason")["reason"]
    assert text in reason and str(model) in reason


def test_a_base_model_without_a_chat_template_is_refused_with_the_key_to_set(
    launch: Launch, assets: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(assets / "tiny-llama", tmp_path / "own"))
    (model / "chat_template.jinja").unlink()
    wanted_settings = {**local(tmp_path, assets), "base_model": str(model)}
    settings = attempt(tmp_path, "prepare", wanted_settings)
    assert launch("prepare", settings).returncode == 1
    assert "set sft.verl.model.custom_chat_template" in outcome(settings, "reason")["reason"]
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    wanted_settings["chat_templates"] = {"sft.verl.model.custom_chat_template": template}
    settings = attempt(tmp_path, "prepare", wanted_settings)
    assert launch("prepare", settings).returncode == 0


def test_a_tokenizer_that_transformers_cannot_load_is_refused(
    launch: Launch, assets: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(assets / "tiny-llama", tmp_path / "own"))
    (model / "tokenizer.json").write_text("{}")
    settings = attempt(tmp_path, "prepare", {**local(tmp_path, assets), "base_model": str(model)})
    launch("prepare", settings)
    assert "transformers cannot load the tokenizer of" in outcome(settings, "reason")["reason"]


def test_a_key_that_verl_does_not_have_is_named_with_similar_ones(
    launch: Launch, assets: Path, tmp_path: Path
) -> None:
    training = sft_settings(verl={"data.train_batchsize": 8}, nodes=1, gpus_per_node=1)
    settings = attempt(tmp_path, "prepare", {**local(tmp_path, assets), "trainings": {"sft": training}})
    assert launch("prepare", settings).returncode == 1
    reason = outcome(settings, "reason")["reason"]
    assert reason.startswith(
        "sft.verl: verl has no setting data.train_batchsize (similar: data.train_batch_size"
    )


def test_a_training_for_gpus_that_needs_flash_attn_is_refused_where_it_is_missing(
    launch: Launch, assets: Path, tmp_path: Path
) -> None:
    data, attention = tmp_path / "data" / "set", "+model.override_config.attn_implementation"
    training = sft_settings(
        train_files=str(data / "train.parquet"),
        val_files=str(data / "test.parquet"),
        nodes=1,
        gpus_per_node=1,
        verl={key: value for key, value in load_recipe("tiny_cpu").sft.verl.items() if key != attention},
    )
    settings = attempt(tmp_path, "prepare", {**local(tmp_path, assets), "trainings": {"sft": training}})
    assert launch("prepare", settings).returncode == 1
    reason = outcome(settings, "reason")["reason"]
    assert reason.startswith("sft.verl: flash-attn is not installed in this environment. ")
    assert f"set {attention} to sdpa" in reason


def rewarded(shared: Path, assets: Path, reward: dict[str, Any]) -> Path:
    data = shared / "data" / "set"
    training = ppo_settings(
        train_files=str(data / "train.parquet"),
        val_files=str(data / "test.parquet"),
        nodes=1,
        gpus_per_node=1,
        device="cpu",
        verl=load_recipe("tiny_cpu").ppo.verl,
        reward=reward,
    )
    return attempt(shared, "prepare", {**local(shared, assets), "trainings": {"ppo": training}})


def test_a_reward_is_tried_on_rows_of_the_data(launch: Launch, assets: Path, tmp_path: Path) -> None:
    settings = rewarded(tmp_path, assets, {"terms": [{"name": "math"}, {"name": "gsm8k", "weight": 0.5}]})
    done = launch("prepare", settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rows; mean scores: the reference answer 1.5, another row's answer 0" in done.stdout


def test_a_reward_that_the_cluster_cannot_import_is_refused_before_the_model_is_prepared(
    launch: Launch, assets: Path, tmp_path: Path
) -> None:
    files = {"own": "import no_such_module\n\n\ndef compute_score(**kwargs):\n    return 1.0\n"}
    settings = rewarded(tmp_path, assets, {"terms": [{"name": "own"}], "files": files})
    assert launch("prepare", settings).returncode == 1
    reason = outcome(settings, "reason")["reason"]
    assert (
        "No module named 'no_such_module' (include/rewards/own.py, line 1): install the package of" in reason
    )
