"""Summaries of verl's step lines, which are quoted from real runs."""

from __future__ import annotations

import pytest

from llm_bridge.monitoring.progress import Progress, duration

SFT = (
    "[n1] Epoch 1/3:  50%|█████     | 2/4 [00:03<00:03,  1.57s/it]step:3"
    " - perf/max_memory_allocated_gb:0.5557327270507812"
    " - perf/cpu_memory_used_gb:5.874042510986328 - train/loss:5.1384596824646 - train/grad_norm:1.7047516107559204"
    " - train/lr:0.005 - train/mfu:0.001899398440624686 - train/total_tokens(B):6.447e-06"
)
PPO = (
    "\x1b[36m(TaskRunnerV1 pid=1031)\x1b[0m step:1 - global_seqlen/min:913.0 - critic/vf_loss:0.007435083040036261"
    " - actor/pg_loss:-0.03154838178306818 - critic/score/mean:0.0 - critic/advantages/mean:-3.2218727685773274e-09"
    " - num_turns/min:np.int32(2) - timing_s/step:43.76162178999948 - perf/time_per_step:43.76162178999948"
)


def test_the_summary_of_an_sft_step_has_loss_and_time_left() -> None:
    progress = Progress()
    assert progress.read("[n1] Total steps: 12, num_warmup_steps: 0") is None
    assert progress.read(SFT) == "step 3 of 12, loss 5.138, 1.6 s/step, about 14 s left"


def test_the_summary_of_a_ppo_step_has_the_reward() -> None:
    progress = Progress()
    progress.read(
        "\x1b[36m(TaskRunnerV1 pid=1031)\x1b[0m INFO:2026-11-23 23:24:14,336:Total training steps: 435"
    )
    summary = "step 1 of 435, reward 0, loss -0.03155, 43.8 s/step, about 5 h 17 min left"
    assert progress.read(PPO) == summary


def test_the_summary_of_a_validation_has_its_reward() -> None:
    line = "step:10 - val-aux/num_turns/min:np.int32(2) - val-core/openai/gsm8k/acc/mean@1:0.4253222137983321"
    assert Progress().read(line) == "step 10, validation reward 0.4253"


def test_the_time_left_is_a_mean_over_the_last_steps() -> None:
    progress = Progress()
    progress.read("Total steps: 100")
    for step, seconds in ((1, 30), (2, 10)):
        summary = progress.read(f"step:{step} - train/loss:1.0 - timing_s/step:{seconds}")
    assert summary == "step 2 of 100, loss 1, 10.0 s/step, about 33 min left"


def test_without_a_known_total_no_time_left_is_estimated() -> None:
    assert Progress().read(SFT) == "step 3, loss 5.138, 1.6 s/step"


@pytest.mark.parametrize(
    "line", ["", "global_step:3 - x:1", "step: 3", "next-step:3 - train/loss:1", "step:4 - note:nothing here"]
)
def test_other_lines_have_no_summary(line: str) -> None:
    assert Progress().read(line) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(14, "14 s"), (90, "2 min"), (9000, "2 h 30 min"), (518400, "6 d 0 h")]
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_summary_of_a_step_without_a_critic_has_the_reward() -> None:
    # GRPO: verl logs scores and rewards under critic/ all the same.
    line = (
        "(TaskRunnerV1 pid=7) step:2 - actor/kl_loss:0.001 - actor/pg_loss:0.02 - critic/score/mean:0.25"
        " - critic/rewards/mean:0.25 - critic/advantages/mean:0.0 - perf/time_per_step:9.5"
    )
    assert Progress().read(line) == "step 2, reward 0.25, loss 0.02, 9.5 s/step"
