"""Drift while a trainer runs: the tool's own statistics of the tensors that a training step already holds."""

from __future__ import annotations

from mismatch_probe.live.metrics import drift_metrics

__all__ = ["drift_metrics"]
