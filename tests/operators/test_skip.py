"""A finished stage does not run again, a failed one resumes, and a user can force a new run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_bridge.operators.exceptions import SlurmJobFailed
from llm_bridge.operators.slurm import SlurmSubmitOperator
from llm_bridge.remote import attempt_dir
from llm_bridge.slurm.spec import SlurmJob, StageOutput

WORK = """#!/bin/bash
mkdir -p ../checkpoints; echo $SLURM_JOB_ID >> ../checkpoints/jobs
if [ -e ../broken ]; then exit 1; fi
echo '{"step": 3}' > "$ATTEMPT_DIR/result.json"
"""


@pytest.fixture
def stage(slurm: Any, request: pytest.FixtureRequest) -> Callable[..., SlurmSubmitOperator]:
    """Make an operator whose job records in its output that it ran."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    directory = f"{slurm.workspace}/skip/{name}"

    def make(force: bool = False, **settings: Any) -> SlurmSubmitOperator:
        output = StageOutput(outputs=[f"{directory}/checkpoints"], force=force)
        job = SlurmJob(cluster="test", script=WORK, directory=directory, settings=settings, output=output)
        return SlurmSubmitOperator(task_id="t", job=job)

    make.directory = Path(directory)  # type: ignore[attr-defined]
    return make


def ran(stage: Any) -> list[str]:
    """Return the jobs that wrote into the current output."""
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
    message = next(line for line in logged() if line.startswith("nothing to do"))
    assert f"touch {stage.directory}/{attempt_dir.FORCE_RERUN}" in message and "force_stages" in message
    assert task.xcoms["slurm_job"] == {"job_id": first["job_id"], "directory": first["directory"]}


def test_a_finished_stage_is_skipped_by_an_airflow_without_a_record_of_it(
    task: Any, stage: Any, new_task: Any
) -> None:
    """As after the restore of an old database backup: the files on the cluster decide."""
    first = task.run(stage())
    stranger = new_task(f"{task.ti.run_id}-2")
    assert stranger.run(stage())["job_id"] == first["job_id"]


def test_other_settings_run_a_stage_again_and_archive_its_old_output(
    task: Any, stage: Any, logged: Any
) -> None:
    first = task.run(stage(lr=1))
    task.clear()
    second = task.run(stage(lr=2))
    assert second["job_id"] != first["job_id"] and ran(stage) == [second["job_id"]]
    archived = Path(attempt_dir.archived(f"{stage.directory}/checkpoints", "attempt-2"))
    assert (archived / "jobs").read_text().split() == [first["job_id"]]
    assert any(str(archived) in line for line in logged())


def test_a_failed_stage_resumes_from_its_output(task: Any, stage: Any, slurm: Any) -> None:
    as_svc(slurm, "mkdir", "-p", str(stage.directory))
    as_svc(slurm, "touch", f"{stage.directory}/broken")
    with pytest.raises(SlurmJobFailed):
        task.run(stage())
    as_svc(slurm, "rm", f"{stage.directory}/broken")
    done = task.run(stage())
    assert len(ran(stage)) == 2 and ran(stage)[-1] == done["job_id"]


def test_force_stages_runs_a_cleared_stage_again_from_zero_but_its_retry_resumes(
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


def test_a_file_named_force_rerun_makes_the_next_attempt_start_from_zero(
    task: Any, stage: Any, slurm: Any
) -> None:
    first = task.run(stage())
    as_svc(slurm, "touch", f"{stage.directory}/{attempt_dir.FORCE_RERUN}")
    task.clear()
    assert task.run(stage())["job_id"] != first["job_id"]
    assert len(ran(stage)) == 1 and not (stage.directory / attempt_dir.FORCE_RERUN).exists()
