"""Quantiles, concentration in few tokens, rates of extreme ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.comparisons import wilson_interval, zero_event_upper_bound
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import MIN_CLUSTERS, POSITIVE_MEAN, interval_from_table
from mismatch_probe.stats.layout import FloatArray, cluster_table, finite_array

_SAMPLE = 4096
LEVELS = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
TAUS = (1.25, 2.0, 5.0)


def quantiles(values: npt.ArrayLike, levels: Sequence[float] = LEVELS) -> tuple[float, ...]:
    """Quantiles by linear interpolation between order statistics.

    Raises:
        InconclusiveError: No values, or values that are not finite.
    """
    return tuple(float(q) for q in np.quantile(finite_array(values, "values"), levels))


def upper_quantile(values: npt.ArrayLike, level: float) -> float:
    """One quantile as of `quantiles`, in a pass over all values and a sort of few, if it is far up.

    Args:
        values: [n].
        level: In [0, 1].

    Raises:
        InconclusiveError: No values, or values that are not finite.
    """
    array = finite_array(values, "values").reshape(-1)
    # Whatever is not above a bound below the quantile only has to be counted; every so many values tell a likely bound.
    some = np.sort(array[:: max(1, array.size // _SAMPLE)])
    bound = some[int(max(0.0, 2 * level - 1 - 0.01) * (some.size - 1))]
    upper = array[array >= bound]
    below = array.size - upper.size
    place = level * (array.size - 1)
    if below > math.floor(place):
        return float(np.quantile(array, level))
    # The same interpolation between the same two order statistics.
    low = math.floor(place) - below
    high = min(low + 1, upper.size - 1)
    pair = np.partition(upper, (low, high))[[low, high]]
    return float(np.quantile(pair, place - math.floor(place)))


def top_share(values: npt.ArrayLike, fraction: float = 0.001) -> float | None:
    """Share of the total that the largest `fraction` of the entries carry.

    Args:
        values: [n], none below 0.
        fraction: Of the entries, rounded up to at least one.

    Returns:
        A number in (0, 1], or None where the total is 0 (nothing to share).

    Raises:
        ConfigError: A value is negative, or `fraction` is not in (0, 1].
        InconclusiveError: No values, or values that are not finite.
    """
    array = finite_array(values, "values")
    if not 0 < fraction <= 1 or np.any(array < 0):
        raise ConfigError("top_share needs values of at least 0 and a fraction in (0, 1]")
    largest = float(array.max())
    if largest == 0:
        return None
    scaled = array / largest
    count = max(1, math.ceil(fraction * array.size))
    top = np.partition(scaled, array.size - count)[array.size - count :]
    return min(float(top.sum() / scaled.sum()), 1.0)


@dataclass(frozen=True, slots=True)
class ExtremeRate:
    """Share of tokens whose ratio leaves [1/tau, tau].

    Attributes:
        tau: Bound on max(rho, 1/rho).
        rate: The share; with no event the interval is one-sided from 0.
    """

    tau: float
    rate: Estimate


def extreme_rates(
    log_ratio: npt.ArrayLike, taus: Sequence[float] = TAUS, clusters: npt.ArrayLike | None = None
) -> tuple[ExtremeRate, ...]:
    """F(tau), the share of tokens with max(rho, 1/rho) > tau (R3, arXiv 2510.11370).

    The interval resamples prompts as that of any positive mean does. Where too few prompts have an event for
    that it is Wilson's with the effective number of tokens n / design effect and Student's t on G - 1
    degrees of freedom (Korn and Graubard 1998); without any event it is the zero-event bound with the design
    effect of |log_ratio|.

    Args:
        log_ratio: [tokens] nats.
        taus: Bounds above 1.
        clusters: [tokens] prompt of each token; default each token by itself.

    Raises:
        ConfigError: A tau is not above 1.
        InconclusiveError: No tokens, or tokens that are not finite.
    """
    values = np.abs(finite_array(log_ratio, "log_ratio"))
    if any(not tau > 1 for tau in taus):
        raise ConfigError("a bound on max(rho, 1/rho) must be above 1")
    labels = np.arange(values.size) if clusters is None else np.asarray(clusters)
    return tuple(
        ExtremeRate(tau, rate_estimate(values > math.log(tau), labels, proxy=values)) for tau in taus
    )


def rate_estimate(
    events: npt.NDArray[np.bool_], clusters: npt.ArrayLike, *, proxy: FloatArray | None = None
) -> Estimate:
    """Share of units with an event, with a clustered Wilson interval.

    Args:
        events: bool [units].
        clusters: [units] prompt.
        proxy: [units] a quantity whose design effect stands in when there is no event (or nothing else);
            default units count as independent then.
    """
    counted = events.astype(np.float64)
    other = np.zeros(events.size) if proxy is None else proxy
    return rate_from_table(cluster_table(clusters, counted, other, other * other))


def rate_from_table(table: FloatArray) -> Estimate:
    """The same from one row for each prompt.

    Args:
        table: float64 [prompts, 4]: events, sum of the proxy, sum of its squares (all 0 for none), units.
    """
    from scipy.special import stdtrit

    prompts, n = int(table.shape[0]), int(table[:, 3].sum())
    rate = float(table[:, 0].sum()) / n
    if prompts < MIN_CLUSTERS:
        return Estimate(rate, None, None, n, f"{prompts} prompts: an interval needs {MIN_CLUSTERS}")
    if rate in (0.0, 1.0):
        effective = _effective_units(table[:, 1], table[:, 3], float(table[:, 2].sum()))
        bound = zero_event_upper_bound(effective)
        return Estimate(rate, 0.0, bound, n) if rate == 0.0 else Estimate(rate, 1.0 - bound, 1.0, n)
    resampled = interval_from_table(table[:, [0, 3]], POSITIVE_MEAN, n=n)
    if resampled.ci_low is not None and resampled.ci_high is not None and resampled.ci_high < 1.0:
        return resampled
    effective = _effective_units(table[:, 0], table[:, 3], float(table[:, 0].sum()))
    student = float(stdtrit(prompts - 1, 0.975))
    low, high = wilson_interval(rate * effective, effective, quantile=student)
    return Estimate(rate, low, high, n)


def _effective_units(sums: FloatArray, counts: FloatArray, squares: float) -> float:
    """Units over design effect, at most the units: sums, counts [prompts] and the overall sum of squares."""
    n, prompts = float(counts.sum()), sums.size
    mean = float(sums.sum()) / n
    within = squares - n * mean * mean
    if within <= 1e-12 * squares or n < 2:
        return n
    residual = sums - mean * counts
    clustered = float(residual @ residual) * prompts / (prompts - 1)
    return n / max(clustered * (n - 1) / (n * within), 1.0)
