"""The helper `slurm_command`: a token bucket that all processes share."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_bridge.remote.login import slurm_command
from llm_bridge.remote.messages import CommandAnswer, CommandRequest, RateBudget, decode, encode


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes only while something sleeps."""
    now = [1000.0]
    monkeypatch.setattr(slurm_command.time, "time", lambda: now[0])
    monkeypatch.setattr(slurm_command.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


@pytest.fixture
def budget(tmp_path: Path) -> RateBudget:
    return RateBudget(str(tmp_path / "folder" / "budget.json"), burst=2, per_minute=6)


def test_after_a_burst_a_token_is_available_at_the_rate(clock: list[float], budget: RateBudget) -> None:
    assert [slurm_command.take(budget) for _ in range(3)] == [0, 0, 10.0]
    clock[0] += 10
    assert slurm_command.take(budget) == 0


def test_a_reserve_leaves_tokens_to_others(clock: list[float], budget: RateBudget) -> None:
    assert slurm_command.take(budget, reserve=1) == 0
    assert slurm_command.take(budget, reserve=1) > 0
    assert slurm_command.take(budget) == 0


def test_a_reserve_larger_than_the_bucket_does_not_block_for_ever(
    clock: list[float], budget: RateBudget
) -> None:
    assert slurm_command.take(budget, reserve=100) == 0


def test_a_damaged_file_counts_as_a_full_bucket(clock: list[float], budget: RateBudget) -> None:
    Path(budget.path).parent.mkdir()
    Path(budget.path).write_text("{")
    assert slurm_command.take(budget) == 0


def test_a_clock_that_was_set_back_costs_no_tokens(clock: list[float], budget: RateBudget) -> None:
    slurm_command.take(budget)
    clock[0] -= 500
    assert slurm_command.take(budget) == 0


def test_a_command_waits_for_its_token(clock: list[float], budget: RateBudget) -> None:
    for _ in range(3):
        done = slurm_command.run(["echo", "hello"], budget)
    assert done.stdout == "hello\n" and clock[0] == 1010


def test_a_command_with_a_reserve_does_not_wait(clock: list[float], budget: RateBudget) -> None:
    request = encode(CommandRequest(["true"], "", budget, reserve=1))
    assert decode(CommandAnswer, slurm_command.main(request)) == CommandAnswer(0, "", "")
    answer = decode(CommandAnswer, slurm_command.main(request))
    assert answer.wait_seconds > 0 and clock[0] == 1000


def test_a_command_that_would_wait_too_long_does_not_run(clock: list[float], tmp_path: Path) -> None:
    slow = RateBudget(str(tmp_path / "b" / "budget.json"), burst=1, per_minute=0.5)
    slurm_command.run(["true"], slow)
    with pytest.raises(slurm_command.RateLimitExceeded):
        slurm_command.run(["false"], slow)


def test_standard_input_and_both_outputs_are_passed_on(budget: RateBudget) -> None:
    request = CommandRequest(["sh", "-c", "cat; echo bad >&2; exit 3"], "text", budget)
    assert decode(CommandAnswer, slurm_command.main(encode(request))) == CommandAnswer(3, "text", "bad\n")


def test_texts_that_are_no_utf_8_are_passed_on_and_the_locale_does_not_matter() -> None:
    done = slurm_command.run(["sh", "-c", "cat; printf 'L\\374fter defekt'"], None, stdin="Jürgen: ")
    assert done.stdout == "Jürgen: L\N{REPLACEMENT CHARACTER}fter defekt"


def test_a_missing_command_is_an_answer_with_the_path_that_was_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = slurm_command.run(["sbatch"], None)
    assert (
        done.returncode == 127
        and done.stderr.startswith("sbatch: command not found")
        and "/nowhere" in done.stderr
    )


def test_a_limit_that_cannot_be_recorded_limits_nothing(tmp_path: Path) -> None:
    """A workspace that cannot be written: nothing can be submitted, and the error about it must be shown."""
    (tmp_path / "file").write_text("")
    budget = RateBudget(f"{tmp_path}/file/.llm-bridge/rpc_budget.json", 1, 1)
    assert slurm_command.run(["echo", "x"], budget).stdout == "x\n"
