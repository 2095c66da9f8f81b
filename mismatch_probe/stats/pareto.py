"""Pareto k of importance weights: how many moments the weights have.

Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto smoothed importance sampling" (arXiv 1507.02646); the
generalised Pareto fit is Zhang and Stephens, "A new and efficient estimation method for the generalized
Pareto distribution" (Technometrics 2009), with the weak prior of the first paper. k > 0.5 means infinite
variance, k > 1 no mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.layout import FloatArray
from mismatch_probe.stats.logspace import log_sum_exp

MIN_TAIL = 5
MIN_ENTRIES = 25
"""With fewer entries the tail of a fifth has fewer than 5."""

State = Literal["value", "exact", "degenerate", "too_few"]


@dataclass(frozen=True, slots=True)
class ParetoK:
    """Shape of the right tail of the weights, or why there is none.

    Attributes:
        state: `value` (a fit), `exact` (all weights are equal: nothing to fit, the sides agree), `degenerate`
            (the tail cannot be fitted), `too_few` (not enough entries).
        value: k with the weak prior towards 0.5, or None.
        good_k: The value up to which estimates from n entries can be relied on, min(1 - 1/log10 n, 0.7).
        n: Entries.
        num_needed: Entries that this k asks for, 10^(1/(1 - max(k, 0))), or None from k = 0.9 on (above
            10^10). For `too_few` the number from which a fit is tried.
        reason: Why there is no value, or None.
        value_before_prior: k of the bare fit, or None.
        sigma: Scale of the fit relative to the largest weight, or None.
        tail_size: Entries in the fitted tail.
    """

    state: State
    value: float | None
    good_k: float | None
    n: int
    num_needed: int | None
    reason: str | None
    value_before_prior: float | None = None
    sigma: float | None = None
    tail_size: int = 0


def pareto_k(log_weight: npt.ArrayLike, *, r_eff: float = 1.0) -> ParetoK:
    """Fits a generalised Pareto law to the largest weights.

    Never use it on clipped weights: clipping removes the tail that it reads, and the result is `degenerate`
    at best.

    Args:
        log_weight: [n] nats, not negated; minus infinity is a weight of 0.
        r_eff: Relative efficiency, effective over actual sample size, for entries that depend on each other
            (1 / design effect).

    Raises:
        InconclusiveError: No entries.
        ConfigError: `r_eff` is not positive, or more than one dimension.
    """
    values = np.atleast_1d(np.asarray(log_weight, dtype=np.float64))
    if values.ndim != 1 or not r_eff > 0:
        raise ConfigError("pareto_k needs one dimension of log-weights and a positive r_eff")
    n = int(values.size)
    if n == 0:
        raise InconclusiveError("pareto_k: there are no weights")
    good = min(1.0 - 1.0 / math.log10(n), 0.7) if n > 1 else None

    def without(state: State, reason: str, needed: int | None = None) -> ParetoK:
        return ParetoK(state, None, good, n, needed, reason)

    if np.any(np.isnan(values)) or np.any(np.isposinf(values)):
        return without("degenerate", "some log-weights are NaN or infinite")
    size = tail_size(n, r_eff)
    if values.max() == values.min() and (n >= MIN_ENTRIES or values.max() == 0.0):
        return without("exact", "all weights are equal: there is no tail")
    if size < MIN_TAIL:
        return without("too_few", f"{n} weights leave a tail of {size}; {MIN_TAIL} are needed", MIN_ENTRIES)
    ordered = np.sort(values)
    tail = ordered[-size:]
    if tail[-1] == tail[0]:
        return without("degenerate", "all weights in the tail are equal: are they clipped?")
    excess = np.exp(tail - tail[-1]) - math.exp(ordered[-size - 1] - tail[-1])
    if excess[_quartile(size)] <= 0.0:
        return without(
            "degenerate",
            "a quarter of the tail ties with its edge: clipped weights, or a span beyond float64",
        )
    bare, sigma = fit_generalised_pareto(excess)
    if not (math.isfinite(bare) and sigma > 0.0):
        return without("degenerate", "the tail could not be fitted")
    value = (size * bare + 5.0) / (size + 10.0)
    needed = math.ceil(minimum_entries(value)) if value < 0.9 else None
    return ParetoK("value", value, good, n, needed, None, bare, sigma, size)


def tail_size(n: int, r_eff: float = 1.0) -> int:
    """Entries that count as tail: 3 sqrt(n / r_eff), or a fifth of a small sample; always fewer than n."""
    size = math.floor(3.0 * math.sqrt(n / r_eff)) if n * r_eff > 225 else math.floor(n / 5)
    return min(size, n - 1)


def minimum_entries(k: float) -> float:
    """Entries that a given k asks for, 10^(1 / (1 - max(k, 0))); infinite from k = 1 on."""
    return 10.0 ** (1.0 / (1.0 - max(k, 0.0))) if k < 1.0 - 1.0 / 300.0 else math.inf


def _quartile(size: int) -> int:
    return int(size / 4 + 0.5) - 1


def fit_generalised_pareto(excess: FloatArray) -> tuple[float, float]:
    """Zhang-Stephens fit.

    Args:
        excess: [n] sorted, what the tail exceeds its edge by.

    Returns:
        Shape k (positive is heavy) and scale sigma.
    """
    n = excess.size
    grid_size = 30 + int(math.sqrt(n))
    grid = 1.0 - np.sqrt(grid_size / (np.arange(1, grid_size + 1) - 0.5))
    grid = grid / (3.0 * excess[_quartile(n)]) + 1.0 / excess[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = np.array([np.log1p(-b * excess).mean() for b in grid])
        likelihood = n * (np.log(-grid / shape) - shape - 1.0)
    usable = np.isfinite(likelihood)
    if not np.any(usable):
        return math.nan, math.nan
    weight = np.exp(likelihood[usable] - log_sum_exp(likelihood[usable]))
    kept = weight >= 10.0 * np.finfo(np.float64).eps
    scale = float(np.sum(grid[usable][kept] * weight[kept]) / weight[kept].sum())
    k = float(np.log1p(-scale * excess).mean())
    return k, -k / scale


def smooth_log_weights(log_weight: npt.ArrayLike, *, r_eff: float = 1.0) -> FloatArray:
    """Pareto-smoothed, normalised log-weights: the tail becomes quantiles of its fit, capped at the largest.

    Args:
        log_weight: [n] nats.
        r_eff: As for `pareto_k`.

    Returns:
        float64 [n] in the order given; exp of it sums to 1.

    Raises:
        InconclusiveError: The tail has no fit; `pareto_k` says why.
    """
    fit = pareto_k(log_weight, r_eff=r_eff)
    values = np.array(log_weight, dtype=np.float64)
    if fit.state != "value" or fit.value is None or fit.sigma is None:
        raise InconclusiveError(f"the weights cannot be smoothed: {fit.reason}")
    values -= values.max()
    order = np.argsort(values, kind="stable")
    tail = order[-fit.tail_size :]
    edge = math.exp(values[order[-fit.tail_size - 1]])
    survival = -np.log1p(-(np.arange(fit.tail_size) + 0.5) / fit.tail_size)
    rise = np.expm1(fit.value * survival) / fit.value if fit.value != 0.0 else survival
    values[tail] = np.minimum(np.log(edge + fit.sigma * rise), 0.0)
    return values - log_sum_exp(values)
