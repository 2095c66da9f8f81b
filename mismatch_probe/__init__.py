"""Mismatch Probe: how far a rollout engine and its trainer disagree on the same tokens, and what follows."""

__version__ = "0.1.0"

__all__ = ["__version__"]
