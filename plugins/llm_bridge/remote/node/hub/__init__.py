"""Transfers from and to the Hugging Face Hub."""
