"""Measurements of llm-bridge's Ray clusters on a local Slurm cluster (`make ray-report`)."""
