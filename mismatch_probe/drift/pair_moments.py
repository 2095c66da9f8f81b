"""Covariance of tokens in pairs: of one sequence, of one prompt, and at fixed distances; fitted by three components."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.layout import FloatArray, SequenceLayout

LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
DECAYS = (-0.9, -0.6, -0.3, 0.3, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95, 0.98)
MAX_PART = 10.0
SURE = 3.0
"""Standard errors that a part must be away from 0 to be kept: the best of 11 decays is looked for."""


@dataclass(frozen=True, slots=True)
class Components:
    """Covariance of two tokens, in parts that add up.

    Attributes:
        prompt: Of two tokens of one prompt, whatever their sequences.
        sequence: What two tokens of one sequence have beyond that.
        serial: What neighbours have beyond that, times decay^distance.
        decay: From token to token, between -1 and 1.
    """

    prompt: float
    sequence: float
    serial: float
    decay: float

    def __post_init__(self) -> None:
        parts = (self.prompt, self.sequence, self.serial)
        if not (min(parts) >= 0.0 and max(parts) <= MAX_PART and -1.0 < self.decay < 1.0):
            raise ConfigError(f"a drift profile's dependence is out of range: {self}")

    @property
    def total(self) -> float:
        """Covariance of a token with itself, its own part aside."""
        return self.prompt + self.sequence + self.serial

    def within(self, limit: float) -> Components:
        """The same, scaled down where it sums to more than `limit`."""
        share = min(1.0, limit / max(self.total, 1e-300))
        return Components(self.prompt * share, self.sequence * share, self.serial * share, self.decay)


@dataclass(frozen=True, slots=True)
class _Moments:
    """Sums of products [prompts, moments] and how many: pairs across sequences, within, at each lag."""

    products: FloatArray
    counts: FloatArray

    def means(self) -> FloatArray:
        return np.asarray(self.products.sum(axis=0) / np.maximum(self.counts.sum(axis=0), 1.0))

    def influences(self) -> FloatArray:
        total = np.maximum(self.counts.sum(axis=0), 1.0)
        return np.asarray((self.products - self.means() * self.counts) / total)


def fit_parts(
    values: FloatArray,
    layout: SequenceLayout,
    correlation: Callable[[FloatArray], FloatArray],
    *,
    known: FloatArray | None = None,
) -> Components:
    """Fits the parts to the pair moments by least squares, each moment counting as many pairs as it has.

    Args:
        values: float64 [tokens], mean 0.
        layout: Their sequences and prompts.
        correlation: Turns means of products into the covariances to be fitted; about linear near 0.
        known: float64 [moments] what of each covariance is accounted for already (`squared_covariances`).

    Returns:
        Components that are not 3 standard errors over prompts above 0 are 0.
    """
    moments = _moments(values, layout)
    found, pairs = correlation(moments.means()), moments.counts.sum(axis=0)
    if known is not None:
        found = found - known
    step = 1e-4
    slope = float(correlation(np.array([step]))[0] / step)
    influence = moments.influences() * slope
    prompt = _if_sure(float(found[0]), influence[:, 0]) if pairs[0] else 0.0
    usable = np.flatnonzero(pairs[1:] > 0) + 1
    if not usable.size:
        return Components(prompt, 0.0, 0.0, 0.0)
    best = Components(prompt, max(_if_sure(float(found[1]), influence[:, 1]) - prompt, 0.0), 0.0, 0.0)
    least = np.inf
    for decay in DECAYS:
        design = np.stack([np.ones(usable.size), _fading(decay, layout)[usable - 1]], axis=1)
        weighted = design * pairs[usable, None]
        if np.linalg.cond(weighted.T @ design) > 1e12:
            continue
        solve = np.linalg.solve(weighted.T @ design, weighted.T)
        level, serial = solve @ found[usable]
        misfit = float(pairs[usable] @ (found[usable] - design @ (level, serial)) ** 2)
        serial = _if_sure(float(serial), influence[:, usable] @ solve[1])
        if serial and misfit < least:
            shared = _if_sure(float(level), influence[:, usable] @ solve[0])
            least, best = misfit, Components(prompt, max(shared - prompt, 0.0), serial, decay)
    return best


def squared_covariances(parts: Components, layout: SequenceLayout) -> FloatArray:
    """Mean square of two tokens' covariance over the pairs of each moment, float64 [moments]."""
    level = parts.prompt + parts.sequence
    within = [np.full(len(LAGS) + 1, level * level)]
    if parts.serial:
        within.append(2.0 * level * parts.serial * _fading(parts.decay, layout))
        within.append(parts.serial**2 * _fading(parts.decay**2, layout))
    return np.concatenate([[parts.prompt**2], np.sum(within, axis=0)])


def _if_sure(value: float, influence: FloatArray) -> float:
    error = float(np.sqrt(influence @ influence))
    return value if value > SURE * error and error > 0.0 else 0.0


def _moments(values: FloatArray, layout: SequenceLayout) -> _Moments:
    lengths = layout.lengths.astype(np.float64)
    sums, squares = layout.sequence_sums(values), layout.sequence_sums(values * values)

    def by_prompt(column: FloatArray) -> FloatArray:
        sums = np.bincount(layout.cluster_index, weights=column, minlength=layout.num_clusters)
        return np.asarray(sums, dtype=np.float64)

    products = [by_prompt(sums) ** 2 - by_prompt(sums**2), by_prompt(sums**2 - squares)]
    counts = [by_prompt(lengths) ** 2 - by_prompt(lengths**2), by_prompt(lengths * (lengths - 1))]
    for lag in LAGS:
        pair = values[lag:] * values[:-lag] if lag < values.size else np.zeros(0)
        same = layout.token_position[lag:] >= lag
        owner = layout.token_cluster[lag:]
        at_lag = np.bincount(owner[same], weights=pair[same], minlength=layout.num_clusters)
        products.append(np.asarray(at_lag, dtype=np.float64))
        counts.append(np.bincount(owner[same], minlength=layout.num_clusters).astype(np.float64))
    return _Moments(np.stack(products, axis=1), np.stack(counts, axis=1))


def _fading(decay: float, layout: SequenceLayout) -> FloatArray:
    """What the serial part adds to each moment but the first: its mean over all pairs of a sequence, then each lag."""
    lengths = layout.lengths.astype(np.float64)
    pairs = 2.0 * (
        decay * lengths / (1.0 - decay) - decay * (1.0 - np.power(decay, lengths)) / (1.0 - decay) ** 2
    )
    within = float(pairs.sum()) / max(float((lengths * (lengths - 1)).sum()), 1.0)
    return np.array([within, *(decay**lag for lag in LAGS)])
