"""E_mu[W] = 1: the identity that every pair of normalised laws over one support obeys, and its test."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.stats.clusters import cluster_standard_error
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.layout import FloatArray, finite_array
from mismatch_probe.stats.logspace import LOG_MAX, log_mean_exp
from mismatch_probe.stats.pareto import pareto_k

MAX_TESTABLE_K = 0.5


@dataclass(frozen=True, slots=True)
class MeanWeight:
    """The sample mean of importance weights against 1.

    Attributes:
        mean: Sample mean of W; None where it leaves float64.
        log_mean: Its logarithm, nats.
        error: Standard error of `mean`, clustered where clusters were given; None where it cannot be had.
        t: (mean - 1) / error; None likewise, and where the tail has no variance.
        gap: log mean W - mean log W >= 0, nats: the KL divergence that the sample itself shows.
        reason: Why there is no t, or None.
        n: Entries.
    """

    mean: float | None
    log_mean: float
    error: float | None
    t: float | None
    gap: float
    reason: str | None
    n: int


def mean_weight(log_weight: npt.ArrayLike, clusters: npt.ArrayLike | None = None) -> MeanWeight:
    """Tests E[W] = 1 where the weights have a variance.

    A sample mean of heavy-tailed weights misses the rare large one and lies below 1 as a rule, so that with a
    Pareto k of 0.5 or more there is no t: a mean below 1 is then no evidence of a fault.

    Args:
        log_weight: [n] log-ratios of tokens or log-weights of sequences, nats.
        clusters: [n] prompt of each entry; default independent entries.

    Raises:
        InconclusiveError: No entries, or entries that are not finite.
        ConfigError: `clusters` has another length.
    """
    values = finite_array(log_weight, "log_weight")
    n, log_mean = int(values.size), log_mean_exp(values)
    gap = _gap(values)
    if float(values.max()) > LOG_MAX / 2.0:
        return MeanWeight(None, log_mean, None, None, gap, "the squares of the weights leave float64", n)
    excess = np.expm1(values)
    spread = cluster_standard_error(excess, np.arange(n) if clusters is None else clusters)
    error = spread.naive if clusters is None else spread.cr1
    mean = 1.0 + spread.mean
    if not error:
        return MeanWeight(mean, log_mean, error, None, gap, "the weights do not vary between units", n)
    tail = pareto_k(values)
    if tail.value is not None and tail.value >= MAX_TESTABLE_K:
        reason = (
            f"not testable with n = {n}: Pareto k {tail.value:.2f} means that the weights have no variance"
        )
        return MeanWeight(mean, log_mean, error, None, gap, reason, n)
    return MeanWeight(mean, log_mean, error, spread.mean / error, gap, None, n)


def _gap(values: FloatArray) -> float:
    centred = values - values.mean()
    if float(np.abs(centred).max()) > 1.0:
        return log_mean_exp(centred)
    # Centred entries sum to 0, so the mean of exp(c) - 1 is that of exp(c) - 1 - c: no cancellation near
    # equality.
    return math.log1p(float(token_k3(centred).mean()))


@dataclass(frozen=True, slots=True)
class GaussianDrift:
    """Moments of the estimators when log-ratios are N(-v/2, v) under the sampling law, so that E[rho] = 1.

    Attributes:
        mean_k1: E k1 = v / 2 = KL, nats.
        mean_k2: E k2 = v / 2 + v^2 / 8.
        mean_k3: E k3 = v / 2.
        var_k1: v.
        var_k2: v^2 / 2 + v^3 / 4.
        var_k3: e^v - 1 - v.
        chi2: e^v - 1.
    """

    mean_k1: float
    mean_k2: float
    mean_k3: float
    var_k1: float
    var_k2: float
    var_k3: float
    chi2: float


def gaussian_drift(variance: float) -> GaussianDrift:
    """What to expect of Gaussian drift of a given variance: the reference line of the reports.

    For v = 0.002 k3 needs about a thousandth of the tokens that k1 needs for the same relative error.

    Args:
        variance: v >= 0 of the log-ratio, nats^2.
    """
    v = float(variance)
    return GaussianDrift(
        mean_k1=v / 2.0,
        mean_k2=v / 2.0 + v * v / 8.0,
        mean_k3=v / 2.0,
        var_k1=v,
        var_k2=v * v / 2.0 + v**3 / 4.0,
        var_k3=float(token_k3(v)),
        chi2=math.expm1(v),
    )
