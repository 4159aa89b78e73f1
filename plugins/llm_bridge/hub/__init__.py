"""The model's way to the Hub."""
