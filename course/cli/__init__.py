"""The commands of `python -m course`, one module each."""
