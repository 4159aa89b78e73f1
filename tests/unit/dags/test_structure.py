"""The DAG files: they parse cheaply, and their graph is what the README draws."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag

from llm_bridge import model_asset
from llm_bridge.config.recipe_keys import KEYS
from testing.paths import ROOT


@pytest.fixture(scope="module")
def dags() -> dict[str, Any]:
    bag = DagBag(dag_folder=str(ROOT / "dags"))
    assert not bag.import_errors
    return dict(bag.dags)


def test_the_folder_has_five_dags_and_one_for_each_recipe_with_a_schedule(dags: dict[str, Any]) -> None:
    assert set(dags) == {
        *("post_training", "sweep_post_training", "reap_orphans", "generate_answers", "cluster_doctor"),
        *("nightly_tiny_cpu", "nightly_gsm8k_llama32_1b"),
    }


def test_answers_are_generated_only_when_triggered_unless_a_model_is_named(
    dags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dag = dags["generate_answers"]
    assert dag.is_paused_upon_creation and dag.schedule is None
    monkeypatch.setenv("LLM_BRIDGE_ANSWERS_MODEL", "me/model")
    bag = DagBag(dag_folder=str(ROOT / "dags" / "generate_answers.py"))
    assert bag.dags["generate_answers"].schedule == model_asset("me/model")


@pytest.mark.parametrize(
    ("extra", "used"),
    [
        ({"repo_id": "me/new", "revision": "abc"}, ("me/new", "abc")),
        ({"from_rest_api": True}, ("me/model", "main")),
    ],
)
def test_an_event_that_a_person_made_takes_the_forms_model(
    dags: dict[str, Any], extra: dict[str, Any], used: tuple[str, str]
) -> None:
    published = dags["generate_answers"].get_task("generate").job.__globals__["published"]
    context = {
        "params": {"repo_id": "me/model", "revision": "main"},
        "triggering_asset_events": {"hf://me/model": [SimpleNamespace(extra=extra)]},
    }
    assert published(context) == used


def test_orphans_are_searched_on_every_cluster_by_default(dags: dict[str, Any]) -> None:
    dag = dags["reap_orphans"]
    assert "local" in dag.task_dict and not dag.is_paused_upon_creation


def test_parsing_imports_no_heavy_library() -> None:
    """Each of these costs seconds and hundreds of MB, at every parse."""
    program = (
        "import runpy, sys\n"
        "for f in ('post_training', 'nightly_post_training', 'reap_orphans', 'generate_answers'):\n"
        "    runpy.run_path(f'dags/{f}.py')\n"
        "heavy = {'torch', 'ray', 'verl', 'huggingface_hub', 'wandb', 'transformers'} & set(sys.modules)\n"
        "heavy |= {'asyncssh', 'paramiko', 'aiohttp', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "plugins")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dag_id", ["post_training", "nightly_tiny_cpu"])
def test_the_graph_is_prepare_sft_ppo_merge_evaluate_upload_summary(
    dags: dict[str, Any], dag_id: str
) -> None:
    """Every task with a plan also follows check itself: cleared together with it, it must wait for the new plan."""
    edges = {task.task_id: set(task.downstream_task_ids) for task in dags[dag_id].tasks}
    assert edges.pop("check") == {*edges} - {"ppo.ray_down"}
    assert edges == {
        "prepare.run": {"prepare.compare"},
        "prepare.compare": {"sft.train"},
        "sft.train": {"sft.merge"},
        "sft.merge": {"ppo.ray_up"},
        "ppo.ray_up": {"ppo.submit", "ppo.ray_down"},
        "ppo.submit": {"ppo.wait"},
        "ppo.wait": {"ppo.ray_down", "merge.run"},
        "ppo.ray_down": {"summary"},
        "merge.run": {"evaluate.run"},
        "evaluate.run": {"upload.gate"},
        "upload.gate": {"upload.approval", "upload.run"},
        "upload.approval": {"upload.run"},
        "upload.run": {"summary"},
        "summary": set(),
    }


def test_the_ray_cluster_is_setup_and_teardown_around_ppo(dags: dict[str, Any]) -> None:
    dag = dags["post_training"]
    assert dag.get_task("ppo.ray_up").is_setup
    assert dag.get_task("ppo.ray_down").is_teardown


@pytest.fixture
def alerting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """include/alerts.yaml with a channel."""
    shutil.copytree(ROOT / "include", tmp_path / "include")
    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(tmp_path / "include"))
    file = tmp_path / "include" / "alerts.yaml"
    file.write_text("http: {conn_id: hook}\nlate_after_hours: {x: 14}\n")
    return file


def test_every_task_but_the_summary_alerts_on_failure_and_the_summary_on_success(alerting: Path) -> None:
    from llm_bridge.pipeline.dag import post_training

    for task in post_training("x").tasks:
        names = [callback.__name__ for callback in task.on_failure_callback or []]
        assert names == (["run_failed"] if task.task_id == "summary" else ["failed"])
        names = [callback.__name__ for callback in task.on_success_callback or []]
        assert names == (["run_succeeded"] if task.task_id == "summary" else [])
        names = [callback.__name__ for callback in task.on_retry_callback or []]
        assert names == ([] if task.task_id == "summary" else ["retried"])


def test_only_the_dags_that_are_named_have_a_deadline(alerting: Path) -> None:
    from llm_bridge.pipeline.dag import post_training

    deadline = post_training("x").deadline
    (alert,) = deadline if isinstance(deadline, list) else [deadline]
    assert alert.interval == timedelta(hours=14)
    assert alert.callback.path == "llm_bridge.notifications.deadline.late"
    assert not post_training("y").deadline


def test_without_a_channel_there_are_no_alerts(dags: dict[str, Any]) -> None:
    from llm_bridge.notifications import on_failure

    assert on_failure() == []


def test_the_form_offers_recipes_clusters_and_stages(dags: dict[str, Any]) -> None:
    params = dags["post_training"].params
    assert {"tiny_cpu", "gsm8k_llama32_1b"} <= set(params.get_param("recipe").schema["enum"])
    assert "local" in params.get_param("cluster").schema["enum"]
    fields = ["recipe", "cluster", "run_name", "base_model", "repo_id", "nodes", "allocation"]
    fields += ["stages", "force_stages", "start_stage", "start_from", "overrides"]
    assert [name for name in params if name not in KEYS] == fields
    sections = dict.fromkeys(params.get_param(name).schema.get("section") for name in params)
    assert list(sections) == [
        *(None, "Model", "Data", "SFT", "RL", "Evaluation", "Publishing"),
        *("Allocation", "Stages", "Start from", "Settings of verl"),
    ]
    shown = params.get_param("recipe").schema["values_display"]["tiny_cpu"]
    assert shown == "tiny_cpu: Tiny Llama on CPUs, for the local demo cluster"
    assert params.get_param("allocation").schema["enum"] == [None, "per_stage", "queue_ahead", "shared"]


def test_nightly_runs_follow_the_recipes_schedule_one_at_a_time_and_start_paused(
    dags: dict[str, Any],
) -> None:
    from llm_bridge.config.loader import load_recipe

    dag = dags["nightly_gsm8k_llama32_1b"]
    assert dag.schedule == load_recipe("gsm8k_llama32_1b").schedule
    assert dag.max_active_runs == 1
    assert dag.is_paused_upon_creation
    assert not dag.catchup
    assert dags["post_training"].schedule is None


def test_a_recipe_that_is_wrong_keeps_its_dag_and_those_of_the_others_and_is_an_import_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(ROOT / "include", tmp_path / "include")
    monkeypatch.setenv("LLM_BRIDGE_INCLUDE", str(tmp_path / "include"))
    recipes = tmp_path / "include" / "recipes"
    (recipes / "typo.yaml").write_text("base_modle: a/b\nschedule: '5 1 * * *'  # cron\n")
    (recipes / "no_cron.yaml").write_text("base_model: a/b\nschedule: every night\n")
    (recipes / "half.yaml").write_text("schedule: 1 2 * * *\n  base_model: [\n")
    (recipes / "other.yaml").write_text("base_model: a/b\nschedul: '5 1 * * *'\n")
    (message,) = DagBag(dag_folder=str(ROOT / "dags" / "check_recipes.py")).import_errors.values()
    assert "include/recipes/other.yaml is not valid" in message and "Did you mean schedule?" in message
    assert "include/recipes/no_cron.yaml" in message and "must be a cron line" in message
    caplog.clear()
    bag = DagBag(dag_folder=str(ROOT / "dags" / "nightly_post_training.py"))
    # Every task of every nightly DAG parses this file.
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert not bag.import_errors
    found = {dag_id: dag.schedule for dag_id, dag in bag.dags.items()}
    assert found == {
        "nightly_tiny_cpu": "0 2 * * *",
        "nightly_gsm8k_llama32_1b": "0 22 * * *",
        "nightly_typo": "5 1 * * *",
        "nightly_no_cron": None,
        "nightly_half": "1 2 * * *",
    }


def test_the_form_preselects_the_recipe_of_the_environment_variable_if_it_exists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from llm_bridge.pipeline.form import form

    monkeypatch.setenv("LLM_BRIDGE_RECIPE", "tiny_cpu")
    assert form()["recipe"].value == "tiny_cpu"
    assert form("gsm8k_llama32_1b")["recipe"].value == "gsm8k_llama32_1b"
    monkeypatch.setenv("LLM_BRIDGE_RECIPE", "gone")
    assert form()["recipe"].value == "chat_sft_llama32_1b"
