"""Crestline: RLHF that knows when to stop."""

__version__ = "0.1.0"
