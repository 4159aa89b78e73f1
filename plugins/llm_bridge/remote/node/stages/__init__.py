"""Stages of a pipeline: prepare, SFT, merge, PPO; each module is one program of a job."""
