"""verl's step lines, as it really prints them, in a line that people read."""

from __future__ import annotations

import pytest

from llm_bridge.progress import Progress, duration

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


def test_a_step_of_sft_says_its_loss_and_the_time_left() -> None:
    progress = Progress()
    assert progress.read("[n1] Total steps: 12, num_warmup_steps: 0") is None
    assert progress.read(SFT) == "step 3 of 12, loss 5.138, 1.6 s/step, about 14 s left"


def test_a_step_of_ppo_says_its_reward() -> None:
    progress = Progress()
    progress.read(
        "\x1b[36m(TaskRunnerV1 pid=1031)\x1b[0m INFO:2026-11-23 23:24:14,336:Total training steps: 435"
    )
    said = "step 1 of 435, reward 0, loss -0.03155, 43.8 s/step, about 5 h 17 min left"
    assert progress.read(PPO) == said


def test_a_validation_says_its_reward() -> None:
    line = "step:10 - val-aux/num_turns/min:np.int32(2) - val-core/openai/gsm8k/acc/mean@1:0.4253222137983321"
    assert Progress().read(line) == "step 10, validation reward 0.4253"


def test_the_time_left_is_a_mean_over_the_last_steps() -> None:
    progress = Progress()
    progress.read("Total steps: 100")
    for step, seconds in ((1, 30), (2, 10)):
        said = progress.read(f"step:{step} - train/loss:1.0 - timing_s/step:{seconds}")
    assert said == "step 2 of 100, loss 1, 10.0 s/step, about 33 min left"


def test_without_a_known_end_no_time_left_is_guessed() -> None:
    assert Progress().read(SFT) == "step 3, loss 5.138, 1.6 s/step"


@pytest.mark.parametrize(
    "line", ["", "global_step:3 - x:1", "step: 3", "next-step:3 - train/loss:1", "step:4 - note:nothing here"]
)
def test_other_lines_say_nothing(line: str) -> None:
    assert Progress().read(line) is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(14, "14 s"), (90, "2 min"), (9000, "2 h 30 min"), (518400, "6 d 0 h")]
)
def test_durations_are_rounded_to_what_matters(seconds: float, said: str) -> None:
    assert duration(seconds) == said
