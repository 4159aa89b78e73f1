"""How a stage can fail, and what is told about it."""
