"""Thresholds that keep a wanted share of what was measured.

Each fit is a function of (statistic per unit, how often each unit counts), so that a bootstrap over prompts
can refit it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.simulate.intervals import quotient
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import RESAMPLES, Statistic, interval_from_table
from mismatch_probe.stats.layout import cluster_table

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Thresholds = dict[str, float]

_SHARE = Statistic(lambda sums: sums[..., 0] / sums[..., 1])
_EFFECTIVE = Statistic(lambda sums: np.square(sums[..., 0]) / (sums[..., 1] * sums[..., 2]), "log", 1)


# exp() of anything further out is 0 or infinite, and neither is a threshold.
_FARTHEST = 690.0


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """What a threshold is fitted to, sorted by the statistic.

    Attributes:
        statistic: The number that the method compares, ascending, float64 [units], nats.
        cluster: Prompt of each unit, [units].
        weight: Tokens that each unit stands for, float64 [units].
    """

    statistic: FloatArray
    cluster: IntArray
    weight: FloatArray

    @classmethod
    def of(cls, statistic: FloatArray, cluster: IntArray, weight: FloatArray) -> Units:
        """Sorts once, so that the many refits of a bootstrap need not."""
        order = np.argsort(statistic, kind="stable")
        return cls(statistic[order], cluster[order], weight[order])


@dataclass(frozen=True, slots=True)
class Fitter:
    """How the thresholds of a method are fitted.

    Attributes:
        units: Reads the statistic off the responses.
        by_kept: Thresholds from (statistic, weights, share to keep).
        inside: Which units thresholds leave alone, from (statistic, thresholds).
        by_ess: Cap from (statistic, weights, effective size to reach); None where the method has no cap.
        fixed: Hyperparameters that go with the fit.
    """

    units: Callable[[Responses], Units]
    by_kept: Callable[[FloatArray, FloatArray, float], Thresholds]
    inside: Callable[[FloatArray, Thresholds], BoolArray]
    by_ess: Callable[[FloatArray, FloatArray, float], Thresholds] | None = None
    fixed: tuple[tuple[str, str], ...] = ()


def weighted_quantile(values: FloatArray, weights: FloatArray, level: float) -> float:
    """The smallest value with at least `level` of the weight at or below it; `values` must ascend."""
    reached = np.cumsum(weights)
    place = int(np.searchsorted(reached, level * reached[-1] * (1.0 - 1e-12)))
    return float(values[min(place, len(values) - 1)])


def effective_fraction(log_weight: FloatArray, weights: FloatArray, log_cap: float) -> float:
    """Kish effective sample size, as a fraction, of weights truncated at exp(log_cap)."""
    scaled = _capped(log_weight, log_cap)
    total, squares = float((weights * scaled).sum()), float((weights * scaled**2).sum())
    return total * total / (float(weights.sum()) * squares)


def _capped(log_weight: FloatArray, log_cap: float) -> FloatArray:
    """Weights truncated at exp(log_cap), over the largest of them."""
    capped = np.minimum(log_weight, log_cap)
    return np.asarray(np.exp(np.maximum(capped - capped.max(), -700.0)))


def _cap_by_kept(statistic: FloatArray, weights: FloatArray, kept: float) -> Thresholds:
    """Leaves that share untruncated."""
    return {"cap": _ratio_at(weighted_quantile(statistic, weights, kept))}


def _cap_by_ess(statistic: FloatArray, weights: FloatArray, ess: float) -> Thresholds:
    """The largest cap whose weights have that effective size; it falls as the cap rises."""
    from scipy.optimize import brentq

    inside = statistic[weights > 0]
    low, high = float(inside.min()), float(inside.max())
    if effective_fraction(statistic, weights, high) >= ess:
        return {"cap": _ratio_at(high)}
    root = brentq(lambda x: effective_fraction(statistic, weights, x) - ess, low, high, xtol=1e-10)
    return {"cap": _ratio_at(float(root))}


def _ratio_at(log_ratio: float) -> float:
    return float(np.exp(np.clip(log_ratio, -_FARTHEST, _FARTHEST)))


def _band_by_kept(statistic: FloatArray, weights: FloatArray, kept: float) -> Thresholds:
    """Equal shares outside on either side."""
    tail = (1.0 - kept) / 2.0
    low = weighted_quantile(statistic, weights, tail)
    high = weighted_quantile(statistic, weights, 1.0 - tail)
    return _band(low, high)


def _centred_band_by_kept(statistic: FloatArray, weights: FloatArray, kept: float) -> Thresholds:
    """Centred on the mean log-ratio per token, -kappa, not on 0."""
    centre = float((weights * statistic).sum() / weights.sum())
    distance = np.abs(statistic - centre)
    order = np.argsort(distance, kind="stable")
    half = weighted_quantile(distance[order], weights[order], kept)
    return _band(centre - half, centre + half)


def _band(low: float, high: float) -> Thresholds:
    """Bounds as ratios; a hair wider, so that rounding does not drop the very unit that sets one."""
    slack = 1e-12 + 1e-9 * (high - low)
    return {"low": _ratio_at(low - slack), "high": _ratio_at(high + slack)}


def _upper_by_kept(name: str) -> Callable[[FloatArray, FloatArray, float], Thresholds]:
    def fit(statistic: FloatArray, weights: FloatArray, kept: float) -> Thresholds:
        return {name: max(weighted_quantile(statistic, weights, kept) * (1.0 + 1e-9), 0.0)}

    return fit


def _below(name: str, log: bool) -> Callable[[FloatArray, Thresholds], BoolArray]:
    def inside(statistic: FloatArray, thresholds: Thresholds) -> BoolArray:
        bound = np.log(thresholds[name]) if log else thresholds[name]
        return np.asarray(statistic <= bound + 1e-12, dtype=np.bool_)

    return inside


def _within(statistic: FloatArray, thresholds: Thresholds) -> BoolArray:
    low, high = np.log(thresholds["low"]) - 1e-12, np.log(thresholds["high"]) + 1e-12
    return np.asarray((statistic >= low) & (statistic <= high), dtype=np.bool_)


def _mismatch(responses: Responses) -> FloatArray:
    """log(pi_old / mu) of every token, or log(pi / mu) without pi_old."""
    above = responses.train if responses.old is None else responses.old
    return np.where(responses.mask, above - responses.rollout, 0.0)


def _tokens(responses: Responses) -> Units:
    # Without advantages the second half repeats the first with the other sign, which no statistic of a token reads.
    half = slice(len(responses.mask) // 2 if responses.assumed else None)
    inside = responses.mask[half]
    cluster = np.repeat(responses.clusters, np.diff(responses.offsets))[half][inside]
    return Units.of(_mismatch(responses)[half][inside], cluster, np.ones(len(cluster)))


def _sequences(
    statistic: Callable[[Responses], FloatArray], *, negative_only: bool = False
) -> Callable[[Responses], Units]:
    def read(responses: Responses) -> Units:
        lengths = responses.lengths()
        here = lengths > 0
        if negative_only:
            here &= responses.advantages < 0
        if not here.any():
            raise InconclusiveError("no response with a negative advantage to fit to")
        return Units.of(statistic(responses)[here], responses.clusters[here], lengths[here])

    return read


def _sum(responses: Responses) -> FloatArray:
    return responses.sequence_sum(_mismatch(responses))


def _mean(responses: Responses) -> FloatArray:
    return quotient(_sum(responses), responses.lengths())


def _mean_k3(responses: Responses) -> FloatArray:
    ratio = np.minimum(_mismatch(responses), 650.0)
    return quotient(responses.sequence_sum(np.expm1(ratio) - ratio), responses.lengths())


def _drop(responses: Responses) -> FloatArray:
    """Mean log(mu / pi), which OPSM compares."""
    drift = np.where(responses.mask, responses.rollout - responses.train, 0.0)
    return quotient(responses.sequence_sum(drift), responses.lengths())


_CAPPED = _below("cap", log=True)

FITTERS: dict[str, Fitter] = {
    "cispo": Fitter(_tokens, _cap_by_kept, _CAPPED, _cap_by_ess, (("variant", "absolute"),)),
    "geo_rs": Fitter(_sequences(_mean), _centred_band_by_kept, _within),
    "icepop": Fitter(_tokens, _band_by_kept, _within),
    "k3_rs": Fitter(_sequences(_mean_k3), _upper_by_kept("bound"), _below("bound", log=False)),
    "opsm": Fitter(
        _sequences(_drop, negative_only=True), _upper_by_kept("delta"), _below("delta", log=False)
    ),
    "seq_mis": Fitter(_sequences(_sum), _band_by_kept, _within),
    "seq_tis": Fitter(_sequences(_sum), _cap_by_kept, _CAPPED, _cap_by_ess),
    "token_tis": Fitter(_tokens, _cap_by_kept, _CAPPED, _cap_by_ess),
}


def fitter_of(name: str, *, by_ess: bool) -> Fitter:
    """How the thresholds of a method are fitted.

    Raises:
        ConfigError: An unknown method, or one without a cap to fit to an effective size.
    """
    fitter = FITTERS.get(name)
    if fitter is None:
        raise ConfigError(
            f"no thresholds to fit for {name!r}", hint=f"can be fitted: {', '.join(sorted(FITTERS))}"
        )
    if by_ess and fitter.by_ess is None:
        raise ConfigError(
            f"{name} has no cap to fit to an effective size", hint="give a share to keep instead"
        )
    return fitter


def reached(
    fitter: Fitter,
    units: Units,
    thresholds: Thresholds,
    *,
    by_ess: bool,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """What thresholds come to, with its 95 % interval over prompts.

    The share of tokens that they leave alone, or the effective size of the weights. Where every unit is kept
    no interval is given: that says nothing of how often it fails.

    Args:
        fitter: Of the method.
        units: What the method compares.
        thresholds: By hyperparameter.
        by_ess: Whether the effective size is wanted.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    n = len(units.statistic)
    if by_ess:
        weights = _capped(units.statistic, float(np.log(thresholds["cap"])))
        columns = [units.weight * weights, units.weight * weights**2, units.weight]
        return _interval(units, columns, _EFFECTIVE, resamples=resamples, seed=seed)
    inside = fitter.inside(units.statistic, thresholds)
    if inside.all() or not inside.any():
        return Estimate(float(inside[0]), None, None, n, "all units on one side of the thresholds")
    made = _interval(units, [units.weight * inside, units.weight], _SHARE, resamples=resamples, seed=seed)
    if made.ci_low is None or made.ci_high is None:
        return made
    return replace(made, ci_low=max(made.ci_low, 0.0), ci_high=min(made.ci_high, 1.0))


def _interval(
    units: Units, columns: list[FloatArray], statistic: Statistic, *, resamples: int, seed: int
) -> Estimate:
    table = cluster_table(units.cluster, *columns)
    return interval_from_table(table, statistic, n=len(units.statistic), resamples=resamples, seed=seed)
