"""Measure llm-bridge and its peers side by side on the local cluster: ``make bench``."""
