"""What is told of a Ray job: why it cannot start, what its exit code and Ray's error type mean."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llm_bridge.failures.errors import RayJobFailed
from llm_bridge.ray import words
from llm_bridge.ray.job import RayJob
from llm_bridge.ray.pending import cannot_start, fits

EVENT: dict[str, Any] = {
    "submission_id": "j",
    "target": {"cluster": None, "job_id": None, "directory": None},
    "directory": None,
    "last_lines": [],
    "notice": "",
    **dict.fromkeys(("job", "info", "reason", "result", "outcome")),
}


class Cluster:
    """Answers of Ray's state API."""

    def __init__(self, asked: dict[str, float], *nodes: dict[str, float]) -> None:
        self.asked, self.has = asked, nodes

    async def asked_for(self, submission_id: str) -> dict[str, float]:
        return self.asked

    async def nodes(self) -> list[dict[str, Any]]:
        return [{"node_name": f"n{i}", "resources_total": has} for i, has in enumerate(self.has, 1)]


async def why(*args: dict[str, float]) -> str | None:
    return await cannot_start(Cluster(*args), "j")  # type: ignore[arg-type]


async def test_a_job_that_wants_more_than_any_one_node_has_cannot_start() -> None:
    told = await why({"GPU": 9.0, "memory": 2**32}, {"GPU": 8.0, "memory": 2**33, "CPU": 4.0}, {"CPU": 64.0})
    assert told is not None
    assert told.startswith(
        "it asks for GPU 9, memory 4.0 GiB on one node, and no node of its Ray cluster has that: "
    )
    assert "n1 GPU 8, memory 8.0 GiB, n2 GPU 0, memory 0.0 GiB" in told and "entrypoint_num_gpus" in told


async def test_a_job_that_waits_for_what_others_use_or_for_nothing_at_all_may_start() -> None:
    assert await why({"GPU": 8.0}, {"CPU": 1.0}, {"GPU": 8.0}) is None
    assert await why({}, {"CPU": 1.0}) is None


async def test_of_many_nodes_only_some_are_named() -> None:
    told = await why({"GPU": 9.0}, *[{"GPU": 8.0}] * 20)
    assert told is not None and "n8" not in told.split("and 12 more")[1] and "and 12 more" in told


def test_all_that_is_asked_for_has_to_be_on_the_same_node() -> None:
    assert not fits({"GPU": 1, "fast": 1}, {"GPU": 1})
    assert fits({"GPU": 1, "fast": 1}, {"GPU": 8, "fast": 1})


@pytest.mark.parametrize(
    ("code", "told"),
    [(137, "memory"), (-9, "memory"), (139, "native code"), (127, "not found"), (3, ""), (0, ""), (None, "")],
)
def test_an_exit_code_is_explained_where_it_means_something(code: int | None, told: str) -> None:
    text = words.of_exit_code(code)
    assert (told in text) if told else text == ""


@pytest.mark.parametrize("error_type", words.ERROR_TYPES)
def test_every_error_type_of_ray_becomes_a_clause_in_the_message(error_type: str) -> None:
    job = {"error_type": error_type, "driver_exit_code": None, "message": "m"}
    text = str(RayJobFailed({**EVENT, "status": "FAILED", "job": job}))
    assert f"(error_type {error_type}): {words.ERROR_TYPES[error_type]}" in text


def test_what_the_wrapper_saw_counts_more_than_rays_word_for_it() -> None:
    job = {"error_type": "JOB_ENTRYPOINT_COMMAND_ERROR", "driver_exit_code": 137}
    assert "memory" in words.of_job(job, {"exit_code": 137})


def test_resources_are_sent_as_the_jobs_api_names_them_and_only_those_that_are_asked_for() -> None:
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
def test_a_secret_in_runtime_env_is_refused_with_where_it_belongs(name: str) -> None:
    with pytest.raises(ValidationError, match=rf"env_vars {name}: .*SlurmJob\.secrets"):
        RayJob(entrypoint=["true"], runtime_env={"env_vars": {name: "x", "TOKENIZERS_PARALLELISM": "false"}})
    RayJob(entrypoint=["true"], runtime_env={"env_vars": {"TOKENIZERS_PARALLELISM": "false", "MONKEY": "1"}})
