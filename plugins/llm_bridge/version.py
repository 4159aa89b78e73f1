"""Version of llm-bridge: it is written into each attempt that is submitted."""

VERSION = "0.1.0"
