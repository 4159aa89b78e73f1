"""Reward right answers to GSM8K, and a little the steps that lead there: ``ppo.reward: example`` in a recipe.

Copy this file to include/rewards/NAME.py to write a reward of your own; docs/rewards.md has the rules. verl calls
compute_score for each response, from several threads at once. Before a run gets a GPU, the stage prepare tries it on
rows of the training data.

Only this file is sent to the cluster: import what is installed in the cluster's environment, and nothing from here.
"""

import re

# "72", "1,234", "-3.5"; the last one in a text counts.
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text):
    """Return the last number of a text as a float; None if it has none."""
    # The end of a long response is enough, and keeps each call short.
    found = NUMBER.findall(text[-500:])
    return float(found[-1].replace(",", "")) if found else None


def compute_score(data_source, solution_str, ground_truth, extra_info=None, step_bonus=0.1, **kwargs):
    """Return 1 for the right number, and up to ``step_bonus`` more for an answer of three lines or more.

    Args:
        data_source: The row's data_source, such as "openai/gsm8k".
        solution_str: The response, without special tokens.
        ground_truth: The row's reward_model.ground_truth.
        extra_info: The row's extra_info; with GSM8K's data it has the question and the reference answer.
        step_bonus: An option, set beside the name: ``ppo.reward: {name: example, step_bonus: 0.2}``.
        kwargs: Anything that later versions of verl may pass.

    Returns:
        The score: a number, or a dict with the key "score". verl logs the dict's other values, so each call must
        return the same keys.
    """
    right = last_number(solution_str) == float(ground_truth.replace(",", ""))
    lines = [line for line in solution_str.splitlines() if line.strip()]
    bonus = step_bonus * min(len(lines), 3) / 3 if right else 0.0
    return {"score": float(right) + bonus, "acc": float(right), "lines": len(lines)}
