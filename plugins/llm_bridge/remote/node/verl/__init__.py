"""Interfaces to verl: configuration, hydra arguments, checkpoints."""
