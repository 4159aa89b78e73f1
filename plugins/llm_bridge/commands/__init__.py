"""Commands of ``python -m llm_bridge``, one module each."""
