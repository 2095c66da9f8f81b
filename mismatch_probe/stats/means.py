"""Token and sequence means with intervals, with reasons where float64 ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import MEAN, POSITIVE_MEAN, Statistic, interval_from_table
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.layout import FloatArray, SequenceLayout
from mismatch_probe.stats.logspace import LOG_MAX, log_mean_exp

OVERFLOW = "exp of the largest log-ratio leaves float64"
EXP_LIMIT = LOG_MAX - 28.0
"""Largest exponent of which 2^40 exponentials can still be summed."""


EXPM1_MEAN = Statistic(MEAN.function, "log1p")
"""Mean of exp(x) - 1, with the interval on the logarithm of the mean of exp(x)."""


def token_mean(values: FloatArray, layout: SequenceLayout, *, positive: bool = False) -> Estimate:
    """Mean over tokens with an interval over prompts.

    Args:
        values: float64 [tokens], finite.
        layout: Sequences and prompts.
        positive: No entry is below 0: the interval is set on the logarithm and needs more than one prompt to
            carry it.
    """
    table = layout.token_table(values)
    return interval_from_table(table, POSITIVE_MEAN if positive else MEAN, n=int(values.size))


def k3_mean(log_ratio: FloatArray, layout: SequenceLayout) -> Estimate:
    """Mean of K3 over tokens; null with the reason where a log-ratio is above 681 nats."""
    if float(log_ratio.max()) > EXP_LIMIT:
        return Estimate(None, None, None, int(log_ratio.size), OVERFLOW)
    return token_mean(token_k3(log_ratio), layout, positive=True)


def sequence_mean(values: FloatArray, layout: SequenceLayout) -> Estimate:
    """Mean over sequences with an interval over prompts; values float64 [sequences]."""
    return interval_from_table(layout.sequence_table(values), MEAN, n=int(values.size))


def token_expm1_mean(exponents: FloatArray, layout: SequenceLayout) -> Estimate:
    """Mean of exp(exponents) - 1 over tokens; exponents float64 [tokens]."""
    return _expm1_mean(exponents, layout.token_table)


def sequence_expm1_mean(exponents: FloatArray, layout: SequenceLayout) -> Estimate:
    """Mean of exp(exponents) - 1 over sequences; exponents float64 [sequences]."""
    return _expm1_mean(exponents, layout.sequence_table)


def _expm1_mean(exponents: FloatArray, table: Callable[[FloatArray], FloatArray]) -> Estimate:
    n, largest = int(exponents.size), float(exponents.max())
    if largest > EXP_LIMIT:
        return Estimate(None, None, None, n, OVERFLOW)
    return interval_from_table(table(np.expm1(exponents)), EXPM1_MEAN, n=n)


def shifted(estimate: Estimate, by: float) -> Estimate:
    """The estimate of value + by."""
    value, low, high = (
        None if end is None else end + by for end in (estimate.value, estimate.ci_low, estimate.ci_high)
    )
    return Estimate(value, low, high, estimate.n, estimate.reason)


def effective_fraction(log_weight: FloatArray, layout: SequenceLayout) -> Estimate:
    """Kish effective sample size over n, 1 / (1 + cv^2), with an interval over prompts.

    The interval is set on the logarithm of cv^2, the squared coefficient of variation of the weights.

    Args:
        log_weight: float64 [sequences], nats.
        layout: Sequences and prompts.
    """
    n = int(log_weight.size)
    # Centring before squaring keeps cv^2 exact to rounding for weights that are nearly equal.
    log_mean = log_mean_exp(log_weight)
    z = np.expm1(log_weight - log_mean)

    def variation(sums: FloatArray) -> FloatArray:
        mean = sums[..., 0] / sums[..., 2]
        return np.asarray(
            np.maximum(sums[..., 1] / sums[..., 2] - np.square(mean), 0.0) / np.square(1.0 + mean)
        )

    cv2 = interval_from_table(layout.sequence_table(z, z * z), Statistic(variation, "log", 1), n=n)
    ends = [None if end is None else 1.0 / (1.0 + end) for end in (cv2.value, cv2.ci_high, cv2.ci_low)]
    return Estimate(ends[0], ends[1], ends[2], n, cv2.reason)


def standard_deviation(values: FloatArray, layout: SequenceLayout) -> Estimate:
    """Standard deviation over sequences (n - 1) with an interval over prompts; values float64 [sequences]."""
    n = int(values.size)
    if n < 2:
        return Estimate(None, None, None, n, "one sequence has no spread")
    centre = float(values.mean())
    unit = float(np.abs(values - centre).max()) or 1.0
    z = (values - centre) / unit

    def spread(sums: FloatArray) -> FloatArray:
        count = sums[..., 2]
        variance = sums[..., 1] / count - np.square(sums[..., 0] / count)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0) * (n / (n - 1))) * unit)

    return interval_from_table(layout.sequence_table(z, z * z), Statistic(spread, "log", 1), n=n)
