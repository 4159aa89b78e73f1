"""Measures what llm-bridge's Ray clusters do on a local Slurm cluster (`make ray-report`)."""
