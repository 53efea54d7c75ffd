"""Triton engine."""
