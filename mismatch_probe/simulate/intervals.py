"""Intervals of ratios of sums over entries, resampled by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import Scale, Statistic, interval_from_table

FloatArray = npt.NDArray[np.float64]

FEW = "too few prompts differ in this quantity for an interval"
# How many times farther one end may lie than the other, as factors of the value.
_LOPSIDED = 20.0
# An interval whose ends are further apart than this factor tells a reader nothing but that a few prompts decide.
_WIDEST = 1000.0


@dataclass(frozen=True, slots=True, eq=False)
class PromptSums:
    """Sums of some columns within each prompt.

    Attributes:
        columns: By name, float64 [prompts].
        resamples: Bootstrap resamples of an interval; 0 gives values without intervals.
        seed: Of the resampling; the same draws for every statistic.
    """

    columns: dict[str, FloatArray]
    resamples: int
    seed: int

    def estimate(
        self,
        names: Sequence[str],
        function: Callable[..., FloatArray],
        *,
        n: int,
        missing: str,
        highest: float | None = None,
    ) -> Estimate:
        """Value and 95 % interval of a function of sums that does not change with their scale.

        Args:
            names: Columns, in the order that `function` takes them; the first one must not hang on one
                prompt.
            function: From one array of sums per column to an array of values; NaN where undefined.
            n: Observations the value rests on.
            missing: The reason, where the value is undefined.
            highest: A bound that the interval cannot pass (1 for shares).
        """
        table = np.stack([self.columns[name] for name in names], axis=1)
        # Prompts that add nothing to any column (none of their advantages has the sign) are not part of the sample.
        table = table[np.any(table != 0, axis=1)]
        if len(table) == 0:
            return Estimate(None, None, None, n, missing)
        if self.resamples == 0:
            value = float(function(*table.sum(axis=0)))
            reason = "no interval was asked for" if np.isfinite(value) else missing
            return Estimate(value if np.isfinite(value) else None, None, None, n, reason)
        # On a log scale a sum that whole prompts add nothing to (a mask) would reach down to 1e-100.
        scale: Scale = "log" if np.all(table > 0) else "identity"
        dominated = 0 if np.all(table >= 0) else None
        statistic = Statistic(lambda sums: function(*np.moveaxis(sums, -1, 0)), scale, dominated)
        made = interval_from_table(table, statistic, n=n, resamples=self.resamples, seed=self.seed)
        if made.value is None:
            return replace(made, reason=missing)
        if made.ci_low is not None and made.ci_high is not None and made.value is not None:
            if dominated is not None and _has_open_end(made.value, made.ci_low, made.ci_high):
                return replace(made, ci_low=None, ci_high=None, reason=FEW)
            lowest = 0.0 if np.all(table >= 0) else -np.inf
            limit = np.inf if highest is None else highest
            return replace(made, ci_low=max(made.ci_low, lowest), ci_high=min(made.ci_high, limit))
        return made


def _has_open_end(value: float, low: float, high: float) -> bool:
    """Whether the interval of a positive quantity is all but unbounded, or reaches much farther one way than the other.

    Resamples without the few prompts that differ have no spread: the studentised bootstrap then leaves that end open.
    """
    if value <= 0.0 or low == value == high:
        return False
    if low > 0.0 and high > _WIDEST * low:
        return True
    below = np.inf if low <= 0.0 else float(np.log(value / low))
    above = float(np.log(high / value))
    return max(below, above) > _LOPSIDED * max(min(below, above), 1e-12)


def quotient(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """A numerator over its denominator, NaN where the denominator is 0."""
    result = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) != 0)
    return result


def kish(total: FloatArray, squares: FloatArray, count: FloatArray) -> FloatArray:
    """Kish effective sample size as a fraction: (sum w)^2 / (n sum w^2)."""
    return quotient(np.square(total), squares * count)


def ratio_of_quotients(
    top: FloatArray, top_count: FloatArray, bottom: FloatArray, bottom_count: FloatArray
) -> FloatArray:
    """(top / top_count) / (bottom / bottom_count), NaN where undefined."""
    return quotient(quotient(top, top_count), quotient(bottom, bottom_count))
