"""Evaluation: answers of each model to the same prompts, their scores, and the differences."""
