"""Paired comparison of two measurements of the same tokens, correction for many, and intervals of rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import MEAN, interval_from_table
from mismatch_probe.stats.layout import FloatArray, cluster_table

EXACT_CLUSTERS = 14


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Second minus first.

    Attributes:
        difference: Mean of second - first over units (a ratio of sums where units have sizes).
        p_value: Two-sided, sign-flip permutation by prompt; None with one prompt.
        num_clusters: Prompts.
        exact: All sign patterns were tried.
    """

    difference: Estimate
    p_value: float | None
    num_clusters: int
    exact: bool


def paired_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    sizes: npt.ArrayLike | None = None,
    permutations: int = 9999,
    seed: int = 0,
) -> PairedDifference:
    """Compares two measurements of the same units, such as K3 sums of sequences before and after a knob.

    Under no effect the difference of a prompt is as likely to be d as -d; the p-value is the share of sign
    patterns at least as extreme as what was seen, all 2^G of them up to 14 prompts, else a random sample that
    counts itself. It cannot fall below 2^(1-G): 5 prompts can never reach 0.05.

    Args:
        first: [units] sums or values.
        second: [units] of the same units.
        clusters: [units] prompt.
        sizes: [units] tokens of each unit where first and second are sums over tokens; default 1 each.
        permutations: Random sign patterns for many prompts.
        seed: Of those.

    Raises:
        ConfigError: The shapes differ.
        InconclusiveError: No units, no size, or values that are not finite.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    size = np.ones_like(one) if sizes is None else np.asarray(sizes, dtype=np.float64)
    if not one.shape == two.shape == size.shape == np.shape(clusters) or one.ndim != 1:
        raise ConfigError("first, second, sizes and clusters must be one-dimensional and of one length")
    if one.size == 0 or size.sum() <= 0 or not np.all(np.isfinite(two - one)):
        raise InconclusiveError("nothing to compare: no units, no tokens, or values that are not finite")
    table = cluster_table(clusters, two - one, size)[:, :2]
    table = table[table[:, 1] > 0]
    estimate = interval_from_table(table, MEAN, n=int(size.sum()))
    groups = int(table.shape[0])
    p_value = _sign_flip(table[:, 0], permutations, seed) if groups > 1 else None
    return PairedDifference(estimate, p_value, groups, 1 < groups <= EXACT_CLUSTERS)


def _sign_flip(sums: FloatArray, permutations: int, seed: int) -> float:
    # Ties that differ by rounding alone must count as ties.
    observed = abs(float(sums.sum())) * (1.0 - 1e-12)
    groups = sums.size
    if groups <= EXACT_CLUSTERS:
        patterns = (np.arange(2**groups)[:, None] >> np.arange(groups)) & 1
        return float(np.mean(np.abs((2.0 * patterns - 1.0) @ sums) >= observed))
    generator = np.random.default_rng(seed)
    hits = 0
    step = max(1, 2_000_000 // groups)
    for start in range(0, permutations, step):
        signs = generator.integers(0, 2, size=(min(step, permutations - start), groups)) * 2.0 - 1.0
        hits += int(np.count_nonzero(np.abs(signs @ sums) >= observed))
    return (hits + 1) / (permutations + 1)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's step-down adjusted p-values (Scandinavian Journal of Statistics, 1979), in the order given.

    Raises:
        ConfigError: A p-value is not in [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if np.any(~((p >= 0) & (p <= 1))):
        raise ConfigError("p-values must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return tuple(float(value) for value in adjusted)


def wilson_interval(
    k: float, n_eff: float, level: float = 0.95, *, quantile: float | None = None
) -> tuple[float, float]:
    """Wilson's score interval of a rate (Journal of the American Statistical Association, 1927).

    Args:
        k: Events, on the scale of `n_eff` (rate * n_eff; may be fractional).
        n_eff: Effective number of trials, n / design effect.
        level: Nominal coverage.
        quantile: Used in place of the normal quantile, for example Student's t where the design effect is
            estimated.

    Raises:
        ConfigError: k or n_eff is out of range.
    """
    if not 0 <= k <= n_eff or n_eff <= 0:
        raise ConfigError(f"{k} events in {n_eff} trials")
    z = normal_quantile(0.5 + level / 2.0) if quantile is None else quantile
    rate = k / n_eff
    centre = (rate + z * z / (2.0 * n_eff)) / (1.0 + z * z / n_eff)
    half = z / (1.0 + z * z / n_eff) * math.sqrt(rate * (1.0 - rate) / n_eff + z * z / (4.0 * n_eff * n_eff))
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    return (0.0 if k == 0 else low), (1.0 if k == n_eff else high)


def zero_event_upper_bound(n_eff: float, level: float = 0.95) -> float:
    """Upper bound of a rate after no event in n_eff trials, 1 - (1 - level)^(1/n_eff): about 3 / n_eff.

    Raises:
        ConfigError: `n_eff` is not positive.
    """
    if n_eff <= 0:
        raise ConfigError("no trials")
    return -math.expm1(math.log1p(-level) / n_eff)


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal law."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)
