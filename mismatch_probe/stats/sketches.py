"""Mergeable summaries of many numbers: quantiles with a bound, and the largest exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.layout import FloatArray, IntArray

_SHIFT = 42
_LOWEST = np.int64(np.array(2.0**-60).view(np.int64) >> _SHIFT)
_HIGHEST = np.int64(np.array(2.0**11).view(np.int64) >> _SHIFT)
_BINS = int(_HIGHEST - _LOWEST) + 1
RELATIVE_ERROR = 2.0**-11
"""Half the width of a bin over its value: what a quantile may be off by (sizes from 2^-60 to 2^11)."""


class SignedHistogram:
    """Counts of numbers by sign and size, 1024 bins for each factor of two.

    The first 11 bits of a float64 after its sign are exponent, the next mantissa; their integer value rises
    with the size, so that the top bits are the bin. Counts are integers: updates and merges in any order give
    the same histogram. Sizes below 2^-60 share the lowest bin and sizes from 2^11 on the highest. Memory: 1.2
    MB.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((2, _BINS), dtype=np.int64)
        self._zeros = 0
        self._low, self._high = np.inf, -np.inf

    @property
    def n(self) -> int:
        """Numbers counted."""
        return int(self._counts.sum()) + self._zeros

    def update(self, values: FloatArray) -> None:
        """Counts finite numbers, float64 [n]."""
        if values.size == 0:
            return
        key = (np.abs(values).view(np.int64) >> _SHIFT) - _LOWEST
        key = np.clip(key, 0, _BINS - 1)
        negative, zero = values < 0.0, values == 0.0
        self._counts[0] += np.bincount(key[negative], minlength=_BINS)
        self._counts[1] += np.bincount(key[~negative & ~zero], minlength=_BINS)
        self._zeros += int(np.count_nonzero(zero))
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))

    def merge(self, other: SignedHistogram) -> None:
        """Adds another histogram."""
        self._counts += other._counts
        self._zeros += other._zeros
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)

    def quantiles(self, levels: Sequence[float]) -> tuple[float, ...]:
        """Quantiles, each off by at most 2^-11 of its size (2^-60 where that is more); levels 0 and 1 exact.

        Raises:
            InconclusiveError: Nothing was counted.
        """
        return self._quantiles(levels, signed=True)

    def absolute_quantiles(self, levels: Sequence[float]) -> tuple[float, ...]:
        """The same of the sizes."""
        return self._quantiles(levels, signed=False)

    def _quantiles(self, levels: Sequence[float], *, signed: bool) -> tuple[float, ...]:
        if self.n == 0:
            raise InconclusiveError("no numbers were counted")
        size = _middles()
        if signed:
            values = np.concatenate([-size[::-1], [0.0], size])
            counts = np.concatenate([self._counts[0][::-1], [self._zeros], self._counts[1]])
            low, high = self._low, self._high
        else:
            values = np.concatenate([[0.0], size])
            counts = np.concatenate([[self._zeros], self._counts.sum(axis=0)])
            high = max(abs(self._low), abs(self._high))
            low = min(abs(self._low), abs(self._high)) if self._low * self._high > 0 else 0.0
        below = np.cumsum(counts)
        result = []
        for level in levels:
            rank = level * (self.n - 1)
            ends = [
                values[np.searchsorted(below, np.floor(r), side="right")]
                for r in (rank, min(np.ceil(rank), self.n - 1))
            ]
            value = float(ends[0] + (rank - np.floor(rank)) * (ends[1] - ends[0]))
            result.append(
                low if level <= 0 and signed else high if level >= 1 else min(max(value, low), high)
            )
        return tuple(result)

    def top_sum(self, count: int, function: Callable[[FloatArray], FloatArray]) -> float:
        """Sum of the `count` largest values of a function of the numbers, from the middle of each bin.

        Args:
            count: How many numbers.
            function: Elementwise, for example the absolute value.
        """
        size = _middles()
        values = function(np.concatenate([-size, [0.0], size]))
        counts = np.concatenate([self._counts[0], [self._zeros], self._counts[1]])
        order = np.argsort(-values, kind="stable")
        sorted_counts = counts[order]
        taken = np.clip(count - (np.cumsum(sorted_counts) - sorted_counts), 0, sorted_counts)
        some = taken > 0
        return float(taken[some] @ values[order][some])


def _middles() -> FloatArray:
    """Middle of each bin, rising, float64 [bins]."""
    bits = ((np.arange(_BINS, dtype=np.int64) + _LOWEST) << _SHIFT) + (1 << (_SHIFT - 1))
    return bits.view(np.float64)


class Largest:
    """The largest rows by their first column, exactly.

    Ties go to the smaller second column, then third: rows carry their coordinates there, so that the order of
    updates and merges does not matter.

    Args:
        capacity: Rows kept.
        num_columns: Columns of a row.
    """

    def __init__(self, capacity: int, num_columns: int = 1) -> None:
        if capacity < 1:
            raise ConfigError("a list of the largest needs room for one")
        self._capacity = capacity
        self._rows = np.empty((0, num_columns))
        self._threshold = -np.inf

    def update(self, keys: FloatArray, *others: FloatArray) -> None:
        """Offers rows: float64 [n] keys and further columns."""
        chosen = keys >= self._threshold
        candidates = np.column_stack([column[chosen] for column in (keys, *others)])
        self._rows = np.concatenate([self._rows, candidates])
        if self._rows.shape[0] > 2 * self._capacity:
            self._shrink()

    def merge(self, other: Largest) -> None:
        """Offers another list's rows."""
        self.update(*other.rows().T)

    def rows(self) -> FloatArray:
        """float64 [up to capacity, columns], largest first."""
        self._shrink()
        return self._rows

    def _shrink(self) -> None:
        keys = self._rows[:, 0]
        if keys.size > self._capacity:
            bound = np.partition(keys, keys.size - self._capacity)[keys.size - self._capacity]
            self._rows = self._rows[keys >= bound]
        if self._rows.shape[1] == 1:
            self._rows = -np.sort(-self._rows, axis=0)[: self._capacity]
        else:
            order: IntArray = np.lexsort((*self._rows.T[:0:-1], -self._rows[:, 0]))[: self._capacity]
            self._rows = self._rows[order]
        if self._rows.shape[0] == self._capacity:
            self._threshold = float(self._rows[-1, 0])
