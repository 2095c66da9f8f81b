"""VESPO's variational problem on measured weights: the rate that a variance budget asks for.

Q is proportional to mu W^alpha exp(-lambda W); lambda is the smallest rate with E_Q[W] <= C (VESPO, arXiv
2602.10693 v3, equations 11 to 17). E_Q[W] falls with lambda, its derivative being -Var_Q(W), so the problem
has one dimension and one root.

E_Q[W] is a ratio of sums over responses, so it has the studentised interval of such ratios over prompts
(`mismatch_probe.stats.intervals`). The interval of lambda are the rates at which that interval holds the
budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import RESAMPLES, Statistic, interval_from_table
from mismatch_probe.stats.layout import cluster_table
from mismatch_probe.weights.kernel import kernel, kernel_constants

FloatArray = npt.NDArray[np.float64]

_LOG_CEILING = 690.0
_MAX_RATE = 1e12
_LARGEST = 1e150
# Rates beyond this times the fitted one are not tried as upper ends.
_MAX_STRETCH = 1e4

_MEAN_WEIGHT = Statistic(lambda sums: sums[..., 0] / sums[..., 1], "log", 0)


@dataclass(frozen=True, slots=True)
class Tilt:
    """What a kernel does with measured weights.

    Attributes:
        alpha: c1, the power.
        rate: c2 = lambda.
        mass: Z = mean of phi, with phi(1) = 1: the share of the signal that is left. phi saturates at 1e150 here.
        mean_weight: E_Q[W].
        ess: Kish effective sample size of phi as a fraction.
        peak_weight: W at which phi is largest, c1 / c2; None at rate 0, where phi has no peak.
        variance_constant: K of Proposition 3.1, sup phi(W) / W; None for c1 < 1 and at rate 0, where it is
            infinite.
        second_moment: Mean of phi^2.
        bound: Z K E_Q[W], which the second moment cannot pass; None without K.
    """

    alpha: float
    rate: float
    mass: float
    mean_weight: float
    ess: float
    peak_weight: float | None
    variance_constant: float | None
    second_moment: float
    bound: float | None


def tilted_mean(
    log_weight: npt.ArrayLike, alpha: float, rate: float, counts: npt.ArrayLike | None = None
) -> float:
    """E_Q[W] = sum W^(alpha + 1) e^(-rate W) / sum W^alpha e^(-rate W).

    Args:
        log_weight: log W, nats, [sequences].
        alpha: Power, at least 0.
        rate: At least 0.
        counts: How often each sequence counts, [sequences]; None counts each once.
    """
    log_w = np.minimum(np.asarray(log_weight, dtype=np.float64), _LOG_CEILING)
    weight = np.exp(np.maximum(log_w, -745.0))
    share = _log_share(log_w, weight, alpha, rate, counts)
    return float((share * weight).sum())


def solve_rate(
    log_weight: npt.ArrayLike, alpha: float, budget: float, counts: npt.ArrayLike | None = None
) -> float:
    """The smallest rate with E_Q[W] <= budget; 0 where the power alone keeps it.

    Args:
        log_weight: log W, nats, [sequences].
        alpha: Power, at least 0.
        budget: C, above 0.
        counts: How often each sequence counts, [sequences]; None counts each once.

    Raises:
        ConfigError: alpha is negative or the budget is not positive.
        InconclusiveError: No sequence, or none whose weight is below the budget: no rate can reach it.
    """
    from scipy.optimize import brentq

    if alpha < 0 or budget <= 0:
        raise ConfigError(f"alpha = {alpha:g} must be at least 0 and the budget {budget:g} above 0")
    log_w = np.minimum(np.asarray(log_weight, dtype=np.float64), _LOG_CEILING)
    if counts is not None:
        log_w, counts = log_w[np.asarray(counts) > 0], np.asarray(counts)[np.asarray(counts) > 0]
    if len(log_w) == 0:
        raise InconclusiveError("no sequence to fit a rate to")
    if tilted_mean(log_w, alpha, 0.0, counts) <= budget:
        return 0.0
    smallest = float(np.exp(max(log_w.min(), -745.0)))
    if smallest >= budget:
        raise InconclusiveError(
            f"every weight is at least {smallest:.4g}: no rate brings their mean to {budget:g}",
            hint="raise the budget",
        )

    def excess(rate: float) -> float:
        return tilted_mean(log_w, alpha, rate, counts) - budget

    high = 1.0
    while excess(high) > 0:
        high *= 2.0
        if high > _MAX_RATE:
            raise InconclusiveError(
                f"no rate up to {_MAX_RATE:g} brings the mean weight to {budget:g}", hint="raise the budget"
            )
    return float(brentq(excess, 0.0, high, xtol=1e-12, rtol=1e-12))


def mean_weight_estimate(
    log_weight: npt.ArrayLike,
    clusters: npt.ArrayLike,
    alpha: float,
    rate: float,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """E_Q[W] at a given rate, with its 95 % interval over prompts.

    Args:
        log_weight: log W, nats, [sequences].
        clusters: Prompt of each sequence, [sequences].
        alpha: Power, at least 0.
        rate: At least 0.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InconclusiveError: No sequence.
    """
    log_w = np.minimum(np.asarray(log_weight, dtype=np.float64), _LOG_CEILING)
    if log_w.size == 0:
        raise InconclusiveError("no sequence to weigh")
    weight = np.exp(np.maximum(log_w, -745.0))
    share = _log_share(log_w, weight, alpha, rate, None)
    table = cluster_table(np.asarray(clusters), share * weight, share)
    return interval_from_table(table, _MEAN_WEIGHT, n=log_w.size, resamples=resamples, seed=seed)


def rate_estimate(
    log_weight: npt.ArrayLike,
    clusters: npt.ArrayLike,
    alpha: float,
    budget: float,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The smallest rate with E_Q[W] <= budget, with its 95 % interval over prompts.

    The interval holds the rates at which the interval of E_Q[W] holds the budget, and 0 where the power alone
    may keep it. Where one prompt dominates E_Q[W] no rate is ruled out.

    Args:
        log_weight: log W, nats, [sequences].
        clusters: Prompt of each sequence, [sequences].
        alpha: Power, at least 0.
        budget: C, above 0.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ConfigError: alpha is negative or the budget is not positive.
        InconclusiveError: As of `solve_rate`.
    """
    rate = solve_rate(log_weight, alpha, budget)
    n = len(np.asarray(log_weight))

    def mean_weight(tried: float) -> Estimate:
        return mean_weight_estimate(log_weight, clusters, alpha, tried, resamples=resamples, seed=seed)

    def lowest(tried: float) -> float:
        end = mean_weight(tried).ci_low
        return -budget if end is None else end - budget

    def highest(tried: float) -> float:
        end = mean_weight(tried).ci_high
        return budget if end is None else end - budget

    here = mean_weight(rate)
    if here.ci_low is None:
        return Estimate(rate, None, None, n, here.reason)
    low = 0.0 if rate == 0 or lowest(0.0) <= 0 else _crossing(lowest, 0.0, rate)
    step = max(rate, 1.0)
    high = rate + step
    while highest(high) > 0:
        step *= 2.0
        if step > _MAX_STRETCH * max(rate, 1.0):
            return Estimate(rate, low, None, n, "these weights rule out no rate as too high")
        high += step
    return Estimate(rate, min(low, rate), max(_crossing(highest, rate, high), rate), n)


def _crossing(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function changes sign; the better end where rounding leaves none."""
    from scipy.optimize import brentq

    at_low, at_high = function(low), function(high)
    if at_low * at_high > 0:
        return low if abs(at_low) < abs(at_high) else high
    return float(brentq(function, low, high, xtol=1e-6, rtol=1e-5))


def tilt(log_weight: npt.ArrayLike, alpha: float, rate: float) -> Tilt:
    """Everything that a kernel does with measured weights.

    Args:
        log_weight: log W, nats, [sequences].
        alpha: c1, at least 0.
        rate: c2, at least 0.

    Raises:
        InconclusiveError: No sequence.
    """
    log_w = np.asarray(log_weight, dtype=np.float64)
    if len(log_w) == 0:
        raise InconclusiveError("no sequence to weigh")
    # At rates in the hundreds phi passes any power of ten below W = 1; its square must stay a number.
    phi = np.minimum(kernel(log_w, alpha, rate), _LARGEST)
    mass, second = float(phi.mean()), float(np.square(phi).mean())
    mean_weight = tilted_mean(log_w, alpha, rate)
    below = np.minimum(log_w, _LOG_CEILING)
    share = _log_share(below, np.exp(np.maximum(below, -745.0)), alpha, rate, None)
    constants = kernel_constants(alpha, rate) if rate > 0 else None
    largest = constants.variance_constant if constants is not None else None
    return Tilt(
        alpha=alpha,
        rate=rate,
        mass=mass,
        mean_weight=mean_weight,
        ess=1.0 / (len(share) * float(np.square(share).sum())),
        peak_weight=None if constants is None else constants.peak_weight,
        variance_constant=largest,
        second_moment=second,
        bound=None if largest is None else min(mass * largest * mean_weight, _LARGEST**2),
    )


def _log_share(
    log_w: FloatArray, weight: FloatArray, alpha: float, rate: float, counts: npt.ArrayLike | None
) -> FloatArray:
    exponent = alpha * log_w - rate * np.minimum(weight, 1e300 / max(rate, 1.0))
    share = np.exp(np.maximum(exponent - exponent.max(), -745.0))
    if counts is not None:
        share = share * np.asarray(counts, dtype=np.float64)
    return np.asarray(share / share.sum())
