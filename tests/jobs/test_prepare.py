"""prepare.py run as the job runs it: from directories, and from a Hub on this machine."""

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

from tests.jobs.support import ROOT, attempt

Launch = Callable[..., subprocess.CompletedProcess[str]]
TOKEN = "hf_demoWritesHere"


@pytest.fixture(scope="module")
def hub(
    assets: Path, cluster_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """local_hub with demo/tiny-llama and demo/gsm8k-tiny; the variables that lead there."""
    root = tmp_path_factory.mktemp("hub")
    (root / "accounts.json").write_text(json.dumps({TOKEN: {"user": "demo", "role": "write", "orgs": []}}))
    argv = [sys.executable, "-m", "local_hub", "--root", str(root / "data"), "--port", "0"]
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


def wanted(shared: Path, data: Any = "demo/gsm8k-tiny", model: Any = "demo/tiny-llama") -> dict[str, str]:
    return {
        "data_source": str(data),
        "data_config": "main",
        "data_dir": str(shared / "data" / "set"),
        "base_model": str(model),
        "model_dir": str(shared / "models" / "model"),
    }


def local(shared: Path, assets: Path) -> dict[str, str]:
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
    done = launch("prepare.py", settings)
    assert done.returncode == 0, done.stderr
    result = outcome(settings)
    assert result["model_path"] == str(assets / "tiny-llama"), "an absolute path is used where it is"
    assert result["skipped"] == ["model"]
    train, test = rows(cluster_python, result["train_files"]), rows(cluster_python, result["val_files"])
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


def test_what_is_there_already_is_kept(launch: Launch, assets: Path, tmp_path: Path) -> None:
    settings = attempt(tmp_path, "prepare", local(tmp_path, assets))
    launch("prepare.py", settings)
    before = os.stat(outcome(settings)["train_files"]).st_mtime_ns
    again = launch("prepare.py", settings)
    assert outcome(settings)["skipped"] == ["data", "model"]
    assert os.stat(outcome(settings)["train_files"]).st_mtime_ns == before
    assert "to fetch it again, remove it" in again.stdout


def test_both_come_from_the_hub_at_a_commit_that_is_written_down(
    launch: Launch, hub: dict[str, str], tmp_path: Path
) -> None:
    settings = attempt(tmp_path, "prepare", wanted(tmp_path))
    done = launch("prepare.py", settings, **hub)
    assert done.returncode == 0, done.stdout + done.stderr
    model = tmp_path / "models" / "model"
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {f.name for f in model.iterdir()}
    for directory in (model, tmp_path / "data" / "set"):
        marker = json.loads((directory / ".llm_bridge_source.json").read_text())
        assert len(marker["revision"]) == 40
    assert sorted(f.name for f in (tmp_path / "data").iterdir()) == ["set"], "no half-made directories stay"
    away = launch("prepare.py", settings, **{**hub, "HF_ENDPOINT": "http://127.0.0.1:9"})
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
    ],
)
def test_a_hub_that_cannot_be_used_is_told_with_what_to_do(
    variables: dict[str, str],
    texts: list[str],
    launch: Launch,
    hub: dict[str, str],
    tmp_path: Path,
) -> None:
    settings = attempt(tmp_path, "prepare", wanted(tmp_path))
    done = launch("prepare.py", settings, **{**hub, **variables})
    assert done.returncode == 1
    reason = outcome(settings, "reason")["reason"]
    assert all(text in reason for text in texts), reason
    assert "Traceback" not in done.stderr and TOKEN not in done.stderr
    assert not (settings.parent / "result.json").exists()


def test_a_repository_that_does_not_exist_is_told(
    launch: Launch, hub: dict[str, str], assets: Path, tmp_path: Path
) -> None:
    settings = attempt(tmp_path, "prepare", wanted(tmp_path, assets / "gsm8k-tiny", "demo/nothing"))
    launch("prepare.py", settings, **hub)
    assert "base_model" in outcome(settings, "reason")["reason"]
    assert "knows no model demo/nothing" in outcome(settings, "reason")["reason"]


def test_two_runs_that_prepare_the_same_at_once_both_succeed(
    hub: dict[str, str], cluster_python: str, tmp_path: Path
) -> None:
    environ = {**os.environ, **hub}
    launcher = str(ROOT / "include" / "jobs" / "prepare.py")
    files = [attempt(tmp_path, f"prepare{n}", wanted(tmp_path)) for n in range(2)]
    both = [
        subprocess.Popen([cluster_python, launcher, str(f)], env=environ, stderr=subprocess.PIPE, text=True)
        for f in files
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sorted(f.name for f in (tmp_path / "models").iterdir()) == ["model"]


def change(python: str, path: Path, code: str) -> None:
    code = f"import pandas; t = pandas.read_parquet({str(path)!r}); {code}; t.to_parquet({str(path)!r})"
    subprocess.run([python, "-c", code], check=True)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("t = t.rename(columns={'answer': 'solution'})", "has no column answer; it has question, solution"),
        ("t.loc[3, 'answer'] = 'twelve'", "row 3: the answer has no '#### NUMBER'"),
    ],
)
def test_data_of_another_shape_are_told_with_file_and_place(
    code: str, text: str, launch: Launch, assets: Path, tmp_path: Path, cluster_python: str
) -> None:
    data = Path(shutil.copytree(assets / "gsm8k-tiny", tmp_path / "own"))
    change(cluster_python, data / "main" / "test-00000-of-00001.parquet", code)
    settings = attempt(tmp_path, "prepare", {**local(tmp_path, assets), "data_source": str(data)})
    launch("prepare.py", settings)
    reason = outcome(settings, "reason")["reason"]
    assert text in reason and "test-00000-of-00001.parquet" in reason


def test_data_without_a_test_split_are_told_what_is_needed(
    launch: Launch, assets: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(assets / "gsm8k-tiny", tmp_path / "own"))
    (data / "main" / "test-00000-of-00001.parquet").unlink()
    settings = attempt(tmp_path, "prepare", {**local(tmp_path, assets), "data_source": str(data)})
    launch("prepare.py", settings)
    assert "no main/test-*.parquet" in outcome(settings, "reason")["reason"]


def test_a_directory_that_holds_other_data_is_not_overwritten(
    launch: Launch, assets: Path, tmp_path: Path
) -> None:
    settings = attempt(tmp_path, "prepare", local(tmp_path, assets))
    launch("prepare.py", settings)
    other = Path(shutil.copytree(assets / "gsm8k-tiny", tmp_path / "own"))
    settings = attempt(tmp_path, "prepare", {**local(tmp_path, assets), "data_source": str(other)})
    assert launch("prepare.py", settings).returncode == 1
    assert f"this run needs {{'source': '{other}'" in outcome(settings, "reason")["reason"]


@pytest.mark.parametrize(
    ("lost", "text"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no a tokenizer"),
        (None, "No such file or directory"),
    ],
)
def test_a_base_model_that_is_none_is_told(
    lost: str | None, text: str, launch: Launch, assets: Path, tmp_path: Path
) -> None:
    model = tmp_path / "own"
    if lost:
        shutil.copytree(assets / "tiny-llama", model)
        (model / lost).unlink()
    settings = attempt(tmp_path, "prepare", {**local(tmp_path, assets), "base_model": str(model)})
    launch("prepare.py", settings)
    reason = outcome(settings, "reason")["reason"]
    assert text in reason and str(model) in reason
