"""A worker that dies anywhere between "about to submit" and "id written down" never yields two jobs, nor a lost one."""

from __future__ import annotations

import json

import pytest

from tests.chaos.conftest import SHORT
from tests.chaos.stack import ChaosStack

# Functions of host_session.py on the way to a new session process.
STARTS = (" _connected", " _locked", " _start", " _open")


def plan(stack: ChaosStack, run: str, **what: object) -> None:
    (stack.plans / f"{run}.json").write_text(json.dumps(what))


@pytest.fixture(scope="module")
def steps(stack: ChaosStack) -> list[str]:
    """The lines that run between intent and id."""
    plan(stack, "steps")
    stack.leave_session_process()
    stack.trigger("job", "steps", lines=1)
    stack.finished("job", "steps")
    (stack.plans / "steps.json").unlink()
    found = (stack.plans / "steps.steps").read_text().splitlines()
    assert len(found) > 60
    return found


def points(steps: list[str]) -> dict[str, dict[str, object]]:
    """Run id -> plan. In the long form every line once, at its first passing; in the short one a few of them."""
    first = list(enumerate(dict.fromkeys(steps), 1))
    chosen = first[:: len(first) // 4] if SHORT else first
    plans = {
        f"line-{n}": {"step": step, "after": 0, "supervisor": n % 4 == 0 and not SHORT} for n, step in chosen
    }
    # The helper on the login node takes its time: die while it looks, while sbatch runs, and as it answers.
    asks = next(step for step in steps if step.startswith("client.py") and step.endswith(" call_helper"))
    for after in (0.1, 0.25) if SHORT else (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6):
        plans[f"after-{after}"] = {"step": asks, "after": after, "supervisor": False}
    return plans


def test_a_worker_killed_at_any_line_between_intent_and_id_yields_one_job(
    stack: ChaosStack, steps: list[str]
) -> None:
    plans = points(steps)
    for run, what in plans.items():
        plan(stack, run, **what)
    # Lines that run only in a task that finds no session process: each of those tasks runs alone, and finds none.
    alone = [[run] for run, what in plans.items() if str(what["step"]).endswith(STARTS)]
    others = [run for run in plans if [run] not in alone]
    for now in [*alone, *(others[n : n + 6] for n in range(0, len(others), 6))]:  # a few at a time: two cores
        stack.leave_session_process()
        for run in now:
            stack.trigger("job", run, lines=3)
        assert stack.finished("job", *now) == dict.fromkeys(now, "success")
    jobs = stack.ledger.jobs()
    for run in plans:
        assert (stack.plans / f"{run}.died").exists(), f"nobody was killed in {run}"
        (attempt,) = stack.ledger.attempts(run)
        (job,) = [job for job in jobs if job.key == attempt.owner["key"]]
        assert (job.job_id, job.done) == (attempt.job_id, True), run
        assert stack.ledger.log_faults(run, attempt) == []
