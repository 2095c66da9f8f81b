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


MAX_TOKEN_SHARE = 0.1
MAX_VARIANCE = 1.0
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


def token_chi2(log_ratio: FloatArray, layout: SequenceLayout) -> Estimate:
    """E[rho^2] - 1 of tokens with an interval over prompts; none where one token carries 10 % of it.

    A single token with such a share of sum (rho - 1)^2 is what ratios without a fourth moment look like at
    every sample size: then the sample does not bracket the mean of their squares.
    """
    estimate = token_expm1_mean(2.0 * log_ratio, layout)
    if estimate.ci_low is None:
        return estimate
    square = np.square(np.expm1(log_ratio))
    return unless_one_token(estimate, float(square.max()), float(square.sum()))


def token_mean_ratio(log_ratio: FloatArray, layout: SequenceLayout) -> Estimate:
    """E[rho] of tokens, 1 in expectation, with an interval under the condition of `token_chi2`."""
    estimate = shifted(token_expm1_mean(log_ratio, layout), 1.0)
    if estimate.ci_low is None:
        return estimate
    square = np.square(np.expm1(log_ratio)) if float(log_ratio.max()) <= EXP_LIMIT / 2.0 else np.ones(1)
    return unless_one_token(estimate, float(square.max()), float(square.sum()))


def unless_one_token(estimate: Estimate, largest: float, total: float) -> Estimate:
    """The estimate of `token_chi2`, without its interval where largest / total is above 10 %."""
    if total == 0.0 or largest <= MAX_TOKEN_SHARE * total:
        return estimate
    reason = f"one token carries {largest / total:.0%} of the variance of the ratio: the sample does not bracket it"
    return Estimate(estimate.value, None, None, estimate.n, estimate.reason or reason)


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

    A sample of weights misses the rare large ones, so that resampling alone puts the effective size too high.
    The interval is the hull of the resampled one and of 1 / mean exp(v T) over the lengths T, what
    log-weights that are Gaussian with variance v T would give at both ends of the interval of v. Not claimed,
    and null, where v times the mean length may exceed 1: there neither carries.

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

    cv2 = interval_from_table(layout.sequence_table(z, z * z), Statistic(variation, "log"), n=n)
    cv2 = widened_by_model(cv2, log_weight, layout)
    ends = [None if end is None else 1.0 / (1.0 + end) for end in (cv2.value, cv2.ci_high, cv2.ci_low)]
    return Estimate(ends[0], ends[1], ends[2], n, cv2.reason)


def sequence_chi2(log_weight: FloatArray, layout: SequenceLayout) -> Estimate:
    """E[W^2] - 1 of sequences, with the interval widened and withheld as that of `effective_fraction`."""
    return widened_by_model(sequence_expm1_mean(2.0 * log_weight, layout), log_weight, layout)


def mean_weight_estimate(log_weight: FloatArray, layout: SequenceLayout) -> Estimate:
    """E[W] of sequences, 1 in expectation; no interval where log W may vary by more than 1 nat^2."""
    estimate = shifted(sequence_expm1_mean(log_weight, layout), 1.0)
    bound = widened_by_model(estimate, log_weight, layout)
    return estimate if bound.ci_low is not None else bound


def widened_by_model(estimate: Estimate, log_weight: FloatArray, layout: SequenceLayout) -> Estimate:
    """Hull of an interval of E[W^2] - 1 and of what Gaussian log-weights would give; null where neither carries.

    Args:
        estimate: Of E[W^2] - 1 or of the squared coefficient of variation.
        log_weight: float64 [sequences], nats.
        layout: Their lengths, all above 0, and prompts.
    """
    if (
        estimate.value is None
        or estimate.ci_low is None
        or estimate.ci_high is None
        or not np.any(log_weight)
    ):
        return estimate
    per_token = variance_per_token(log_weight, layout)
    low, high = per_token.ci_low, per_token.ci_high
    lengths = layout.lengths.astype(np.float64)
    if low is None or high is None:
        return Estimate(estimate.value, None, None, estimate.n, per_token.reason)
    if high * float(lengths.mean()) > MAX_VARIANCE:
        reason = f"log W may vary by more than {MAX_VARIANCE:g} nat^2: the sample is no guide to rare large weights"
        return Estimate(estimate.value, None, None, estimate.n, reason)
    ends = [float(np.expm1(v * lengths).mean()) for v in (low, high)]
    return Estimate(estimate.value, min(estimate.ci_low, ends[0]), max(estimate.ci_high, ends[1]), estimate.n)


def variance_per_token(log_weight: FloatArray, layout: SequenceLayout) -> Estimate:
    """N / (n - 1) sum (log W + kappa T)^2 / sum T with kappa = -sum log W / sum T, nats^2 per token.

    Args:
        log_weight: float64 [sequences], nats.
        layout: Their lengths, all above 0, and prompts.
    """
    n = int(log_weight.size)
    if n < 2:
        return Estimate(None, None, None, n, "one sequence has no spread")
    moments = length_moments(log_weight, layout)
    return interval_from_table(moments, Statistic(variance_of_moments(n), "log"), n=n)


def length_moments(log_weight: FloatArray, layout: SequenceLayout) -> FloatArray:
    """Sums of w, wT, T, T^2, w^2 and the number of sequences of each prompt, float64 [prompts, 6]."""
    lengths = layout.lengths.astype(np.float64)
    return layout.sequence_table(
        log_weight, log_weight * lengths, lengths, lengths * lengths, log_weight * log_weight
    )


def variance_of_moments(n: int) -> Callable[[FloatArray], FloatArray]:
    """The variance per token as a function of `length_moments`, for n sequences in all."""

    def variance(sums: FloatArray) -> FloatArray:
        kappa = -sums[..., 0] / sums[..., 2]
        squares = sums[..., 4] + 2.0 * kappa * sums[..., 1] + kappa * kappa * sums[..., 3]
        return np.asarray(np.maximum(squares, 0.0) / sums[..., 2] * (n / (n - 1)))

    return variance


def standard_deviation(values: FloatArray, layout: SequenceLayout) -> Estimate:
    """Standard deviation over sequences (n - 1) with an interval over prompts; values float64 [sequences]."""
    n = int(values.size)
    if n < 2:
        return Estimate(None, None, None, n, "one sequence has no spread")
    centre = float(values.mean())
    unit = float(np.abs(values - centre).max()) or 1.0
    z = (values - centre) / unit

    def variance(sums: FloatArray) -> FloatArray:
        squares = sums[..., 1] / sums[..., 2] - np.square(sums[..., 0] / sums[..., 2])
        return np.asarray(np.maximum(squares, 0.0) * (n / (n - 1)))

    found = interval_from_table(layout.sequence_table(z, z * z), Statistic(variance, "log"), n=n)
    ends = [
        None if end is None else float(np.sqrt(end)) * unit
        for end in (found.value, found.ci_low, found.ci_high)
    ]
    return Estimate(ends[0], ends[1], ends[2], n, found.reason)
