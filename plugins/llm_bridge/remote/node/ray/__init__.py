"""A Ray cluster inside one Slurm job: head guard, node agents, and their helpers."""
