"""The trial on GPUs, as far as it runs without one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import gpu_trial
from testing.paths import ROOT

LINE = (
    "(TaskRunnerV1 pid=1) step:{} - critic/score/mean:{} - response_length/mean:60.0 - timing_s/gen:2.0 - "
    "timing_s/step:np.float64({}) - training/rollout_actor_probs_pearson_corr:0.9999 - actor/lr:1e-06"
)


def test_a_machine_without_gpus_says_which_cases_did_not_run_and_what_is_missing() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_trial", "ppo-1b", "direct:grpo-1b#2"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout.startswith("not run: ppo-1b, direct:grpo-1b#2: ")
    assert "vllm is not installed in " in ended.stdout and "requirements-cluster-vllm.txt" in ended.stdout


def test_an_unknown_case_is_refused_with_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_trial", "ppo-2b"])
    with pytest.raises(SystemExit):
        gpu_trial.main()
    assert "no case ppo-2b: choose from tune-1b, " + ", ".join(gpu_trial.CASES) in capsys.readouterr().err


def test_the_numbers_are_medians_after_the_second_step_and_each_step_has_its_score() -> None:
    lines = [
        LINE.format(step, 0.1 * step, seconds) for step, seconds in ((1, 90), (2, 30), (3, 4), (4, 6), (5, 5))
    ]
    found = gpu_trial.numbers(
        "\n".join(lines), {"data.train_batch_size": 8, "actor_rollout_ref.rollout.n": 4}
    )
    assert found["steps"] == 5 and found["all_step_s"] == [90, 30, 4, 6, 5] and found["step_s"] == 5
    assert found["scores"] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert found["pearson"] == 0.9999
    assert found["rollout_tokens_per_s"] == 60 * 8 * 4 / 2


def test_a_training_without_a_step_has_no_numbers() -> None:
    assert gpu_trial.numbers("Traceback (most recent call last):", {}) == {"steps": 0}
