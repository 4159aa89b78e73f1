"""Rewards of PPO: built-in ones, the user's own file, and the trial before a run gets GPUs."""
