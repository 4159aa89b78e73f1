"""The trial on GPUs, as far as it runs without one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_a_step_that_saves_is_not_in_the_medians() -> None:
    lines = [LINE.format(step, 0.1, seconds) for step, seconds in ((1, 90), (2, 30), (3, 4), (4, 50))]
    lines[-1] += " - timing_s/save_checkpoint:40.0"
    found = gpu_trial.numbers("\n".join(lines), {"data.train_batch_size": 8})
    assert (found["steps"], found["step_s"]) == (4, 4)


def test_a_training_without_a_step_has_no_numbers() -> None:
    assert gpu_trial.numbers("Traceback (most recent call last):", {}) == {"steps": 0}


def test_the_time_of_an_sft_step_is_that_between_its_lines_although_a_progress_bar_stands_before_them(
    tmp_path: Path,
) -> None:
    step = "{:.2f} Epoch 1/9:  2%\r| 1/64 [00:04<04:16]step:{} - train/loss:2.5 - train/global_tokens:3000 - x:1\n"
    lines = "".join(step.format(20 + 0.5 * number, number) for number in range(1, 9))
    (tmp_path / "times.log").write_bytes(b"0.10 begin\n" + lines.encode())
    found = gpu_trial.sft_numbers(gpu_trial._times(tmp_path))
    assert (found["steps"], found["step_s"], found["tokens_per_s"]) == (8, 0.5, 6000)
    assert (found["first_step_after_s"], found["last_loss"]) == (20.5, 2.5)


def test_a_start_is_timed_by_the_first_line_of_each_mark() -> None:
    lines = [
        (1.5, "PPO: 31 steps an epoch"),
        (9.0, "Connected to Ray cluster."),
        (12.0, "Connected to Ray cluster."),
    ]
    assert gpu_trial.start_times(lines) == {"program": 1.5, "ray": 9.0}


def test_ratios_compare_trainings_of_the_same_case_on_as_many_gpus() -> None:
    def entry(seconds: float, gpus: str, code: int = 0) -> dict[str, Any]:
        return {"exit_code": code, "step_s": seconds, "gpus": gpus}

    report = {
        "sft-1b": entry(1.0, "0"),
        "sft-1b#2": entry(1.2, "1"),
        "direct:sft-1b": entry(1.21, "1"),
        "direct:sft-1b#2": entry(9.9, "1", code=1),
        "direct:sft-1b#3": entry(0.5, "0,1"),
        "grpo-1b": entry(3.0, "0"),
    }
    found = gpu_trial.ratios(report)
    assert found == {"sft-1b on GPUs: 1": {"project": [1.0, 1.2], "direct": [1.21], "ratio": 1.1}}


def test_lanes_run_beside_each_other_and_a_case_behind_a_bar_only_where_the_one_before_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Programs are replaced by one that prints: nothing here can train."""
    code = "import sys, time; time.sleep(0.3); sys.exit('/ppo-1b/' in sys.argv[1])"
    monkeypatch.setattr(gpu_trial, "_gpus", lambda: ["4", "5"])
    monkeypatch.setattr(gpu_trial, "DISTRIBUTIONS", ())
    monkeypatch.setattr(gpu_trial, "_watch_memory", lambda *arguments: None)
    monkeypatch.setattr(gpu_trial.Trial, "make_models", lambda self: None)
    monkeypatch.setattr(gpu_trial.Trial, "ray", lambda self, name: contextlib.nullcontext())
    monkeypatch.setattr(
        gpu_trial.Trial, "program", lambda self, name, *arguments: [sys.executable, "-c", code, *arguments]
    )
    lanes = [["ppo-1b|ppo-1b-half"], ["grpo-1b|ppo-small", "sft-1b"]]
    assert gpu_trial.run(tmp_path, 1, lanes, ["lora-1b"]) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: (entry["exit_code"], entry["gpus"]) for name, entry in report.items()} == {
        "ppo-1b": (1, "4"),
        "ppo-1b-half": (0, "4"),
        "grpo-1b": (0, "5"),
        "sft-1b": (0, "5"),
        "lora-1b": (0, "4,5"),
    }
