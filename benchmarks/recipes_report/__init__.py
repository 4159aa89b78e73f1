"""Train the tiny twin of every recipe, and try bad inputs."""
