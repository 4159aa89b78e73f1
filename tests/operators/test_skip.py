"""A finished stage is not run again; one that failed goes on; a user can say otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.failures.errors import SlurmJobFailed
from llm_bridge.slurm.fingerprint import Result
from llm_bridge.slurm.job import SlurmJob
from llm_bridge.slurm.operators import SlurmSubmitOperator

WORK = """#!/bin/bash
mkdir -p ../checkpoints; echo $SLURM_JOB_ID >> ../checkpoints/jobs
if [ -e ../broken ]; then exit 1; fi
echo '{"step": 3}' > "$ATTEMPT_DIR/result.json"
"""


@pytest.fixture
def stage(slurm: Any, request: pytest.FixtureRequest) -> Callable[..., SlurmSubmitOperator]:
    """An operator whose job notes in its output that it ran."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    directory = f"{slurm.workspace}/skip/{name}"

    def make(force: bool = False, **settings: Any) -> SlurmSubmitOperator:
        result = Result(outputs=[f"{directory}/checkpoints"], force=force)
        job = SlurmJob(cluster="test", script=WORK, directory=directory, settings=settings, result=result)
        return SlurmSubmitOperator(task_id="t", job=job)

    make.directory = Path(directory)  # type: ignore[attr-defined]
    return make


def ran(stage: Any) -> list[str]:
    """The jobs that wrote into the output that counts."""
    return (stage.directory / "checkpoints" / "jobs").read_text().split()


def as_svc(slurm: Any, *argv: str) -> None:
    assert slurm.run("login", list(argv), user="svc").returncode == 0


def test_a_finished_stage_is_skipped_when_its_task_is_cleared_and_the_log_says_how_to_force_it(
    task: Any, stage: Any, logged: Any
) -> None:
    first = task.run(stage())
    task.clear()
    logged()
    again = task.run(stage())
    assert again == first | {"queue_s": None, "run_s": again["run_s"]}
    assert ran(stage) == [first["job_id"]]
    said = next(line for line in logged() if line.startswith("nothing to do"))
    assert f"touch {stage.directory}/force" in said and "force_stages" in said
    assert task.xcoms["slurm_job"] == {"job_id": first["job_id"], "directory": first["directory"]}


def test_a_finished_stage_is_skipped_by_an_airflow_that_knows_nothing_of_it(
    task: Any, stage: Any, new_task: Any
) -> None:
    """A database restored from yesterday's backup, say: the cluster's own files tell."""
    first = task.run(stage())
    stranger = new_task(f"{task.ti.run_id}-2")
    assert stranger.run(stage())["job_id"] == first["job_id"]


def test_other_settings_run_it_anew_and_set_the_old_output_aside(task: Any, stage: Any, logged: Any) -> None:
    first = task.run(stage(lr=1))
    task.clear()
    second = task.run(stage(lr=2))
    assert second["job_id"] != first["job_id"] and ran(stage) == [second["job_id"]]
    aside = stage.directory / "checkpoints.until-attempt-2"
    assert (aside / "jobs").read_text().split() == [first["job_id"]]
    assert any(str(aside) in line for line in logged())


def test_a_failed_stage_goes_on_from_what_it_left(task: Any, stage: Any, slurm: Any) -> None:
    as_svc(slurm, "mkdir", "-p", str(stage.directory))
    as_svc(slurm, "touch", f"{stage.directory}/broken")
    with pytest.raises(SlurmJobFailed):
        task.run(stage())
    as_svc(slurm, "rm", f"{stage.directory}/broken")
    done = task.run(stage())
    assert len(ran(stage)) == 2 and ran(stage)[-1] == done["job_id"]


def test_force_stages_makes_a_cleared_stage_anew_but_its_retry_goes_on(
    task: Any, stage: Any, slurm: Any
) -> None:
    task.run(stage())
    task.clear()
    as_svc(slurm, "touch", f"{stage.directory}/broken")
    with pytest.raises(SlurmJobFailed):
        task.run(stage(force=True))
    assert len(ran(stage)) == 1
    as_svc(slurm, "rm", f"{stage.directory}/broken")
    task.run(stage(force=True))
    assert len(ran(stage)) == 2


def test_a_file_named_force_makes_the_next_attempt_begin_anew(task: Any, stage: Any, slurm: Any) -> None:
    first = task.run(stage())
    as_svc(slurm, "touch", f"{stage.directory}/force")
    task.clear()
    assert task.run(stage())["job_id"] != first["job_id"]
    assert len(ran(stage)) == 1 and not (stage.directory / "force").exists()
