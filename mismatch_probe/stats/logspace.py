"""Sums of exponentials that neither overflow nor underflow."""

from __future__ import annotations

import math

import numpy as np

from mismatch_probe.stats.layout import FloatArray

LOG_MAX = 709.0  # exp of more than this leaves float64


def log_sum_exp(values: FloatArray) -> float:
    """Log of the sum of exp(values), float64 [n]; minus infinity where all entries are, or none exist."""
    if values.size == 0:
        return -math.inf
    top = float(values.max())
    if not math.isfinite(top):
        return top
    return top + math.log(float(np.exp(values - top).sum()))


def log_mean_exp(values: FloatArray) -> float:
    """Log of the mean of exp(values), float64 [n]."""
    return log_sum_exp(values) - math.log(values.size)


def exp_or_none(log_value: float) -> float | None:
    """exp(log_value), or None where that leaves float64."""
    return math.exp(log_value) if log_value <= LOG_MAX else None
