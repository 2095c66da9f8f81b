"""Intervals of ratios of sums, resampled by prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.stats.estimate import Estimate

FloatArray = npt.NDArray[np.float64]

Statistic = Callable[[FloatArray], FloatArray]

_CHUNK = 4_000_000  # counts held at once: 32 MB


@dataclass(frozen=True, slots=True)
class PromptSums:
    """Column sums by prompt, and the same sums over bootstrap resamples of the prompts.

    Attributes:
        total: [columns].
        resampled: [resamples, columns].
        clusters: Number of prompts.
    """

    total: FloatArray
    resampled: FloatArray
    clusters: int

    @classmethod
    def of(cls, table: FloatArray, *, resamples: int, seed: int) -> PromptSums:
        """Resamples whole prompts.

        A resample draws as many prompts as there are; a statistic that is a function of sums needs no more
        than the sums over the drawn prompts.

        Args:
            table: [prompts, columns], sums within each prompt.
            resamples: How many.
            seed: Of the generator; the same seed gives the same draws for every method.
        """
        prompts = len(table)
        if prompts < 2:
            return cls(table.sum(axis=0), np.empty((0, table.shape[1])), prompts)
        generator = np.random.default_rng(seed)
        step = max(1, _CHUNK // prompts)
        pieces = []
        for begin in range(0, resamples, step):
            size = min(step, resamples - begin)
            counts = generator.multinomial(prompts, np.full(prompts, 1.0 / prompts), size=size)
            pieces.append(counts @ table)
        return cls(table.sum(axis=0), np.concatenate(pieces), prompts)

    def estimate(self, statistic: Statistic, n: int, *, missing: str) -> Estimate:
        """Value and 95 % percentile interval.

        Args:
            statistic: From sums [..., columns] to numbers [...], NaN where undefined.
            n: Observations the value rests on.
            missing: The reason, where the value is undefined.
        """
        value = float(statistic(self.total))
        if not np.isfinite(value):
            return Estimate(None, None, None, n, missing)
        if self.clusters < 2:
            return Estimate(value, None, None, n, "an interval needs at least two prompts")
        draws = statistic(self.resampled)
        draws = draws[np.isfinite(draws)]
        # A resample without, say, any negative advantage says nothing; too few others make no interval.
        if len(draws) < 0.9 * len(self.resampled):
            return Estimate(value, None, None, n, "too few prompts carry this number for an interval")
        low, high = np.quantile(draws, [0.025, 0.975])
        return Estimate(value, float(low), float(high), n)


def quotient(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """A numerator over its denominator, NaN where the denominator is 0."""
    result = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) != 0)
    return result
