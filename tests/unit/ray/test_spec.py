"""Specifications of Ray jobs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llm_bridge.ray.spec import RayJob


def test_only_requested_resources_are_sent_under_their_names_in_the_jobs_api() -> None:
    job = RayJob(entrypoint=["true"], entrypoint_num_gpus=2, entrypoint_resources={"fast": 1})
    assert job.resources() == {"entrypoint_num_gpus": 2, "entrypoint_resources": {"fast": 1}}
    assert RayJob(entrypoint=["true"]).resources() == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"entrypoint_num_gpus": -1},
        {"entrypoint_resources": {"GPU": 1}},
        {"entrypoint_resources": {"fast": 0}},
        {"entrypoint_memory": "much"},
    ],
)
def test_wrong_resources_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RayJob(entrypoint=["true"], **wrong)


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "HF_TOKEN", "token", "DB_PASSWORD"])
def test_a_secret_in_runtime_env_is_refused_with_its_proper_place(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"env_vars {name}: .*SlurmJob\.secrets"):
        RayJob(entrypoint=["true"], runtime_env={"env_vars": {name: "x", "TOKENIZERS_PARALLELISM": "false"}})
    RayJob(entrypoint=["true"], runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "false", "MONKEY": "1"}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either entrypoint or program"),
        (
            {"entrypoint": ["true"], "program": "ppo", "directory": "/w/ppo"},
            "give either entrypoint or program",
        ),
        ({"program": "ppo"}, "program needs directory"),
    ],
)
def test_a_job_has_an_entrypoint_or_a_program_with_a_directory(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RayJob(**fields)
    assert RayJob(program="ppo", directory="/w/ppo").settings == {}
