"""Sums that do not depend on the order of their terms.

A float64 sum depends on the order in which its terms are added, so that a trace measured in parts would give
other last digits for another cut. Here every term is split into integers on a fixed grid of powers of 2^22,
each grid line is summed without rounding (as reproducible summation does; Demmel and Nguyen, "Parallel
reproducible summation", IEEE Transactions on Computers 2015), and only the total is rounded, once.
"""

from __future__ import annotations

import math

import numpy as np

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.layout import FloatArray, IntArray

WIDTH = 22
LINES = 4
"""A float64 has 53 bits: it touches at most four lines of 22."""
MAX_TERMS = 2**29
"""Integers below 2^23 on each line: so many of them stay below 2^53."""


class ExactSums:
    """A table of sums, rows by index, that grows as rows are added.

    Adding and merging in any order gives the same table bit for bit. Memory: 8 bytes for each row, column and
    grid line in use (one line for each factor of 4 million in the range of the terms, and three more).

    Args:
        num_columns: Columns of the table.
    """

    def __init__(self, num_columns: int) -> None:
        self._num_columns = num_columns
        self._num_rows = 0
        self._terms = 0
        self._lines: dict[int, FloatArray] = {}

    def add(self, rows: IntArray, values: FloatArray) -> None:
        """Adds terms.

        Args:
            rows: int64 [terms] row of each term.
            values: float64 [terms, columns], finite.

        Raises:
            ConfigError: A value is not finite, the shape is wrong, or 2^29 terms are exceeded.
        """
        if values.shape != (rows.size, self._num_columns) or not np.all(np.isfinite(values)):
            raise ConfigError(f"exact sums take finite values of shape [{rows.size}, {self._num_columns}]")
        if rows.size == 0:
            return
        self._count(rows.size)
        self._grow(int(rows.max()) + 1)
        line = (np.frexp(values)[1] - 1) // WIDTH
        rest = np.ldexp(values, -WIDTH * line)
        for _ in range(LINES):
            whole = np.trunc(rest)
            self._add_whole(rows, line, whole)
            rest = (rest - whole) * 2.0**WIDTH
            line = line - 1
            if not np.any(rest):
                break

    def merge(self, other: ExactSums, rows: IntArray) -> None:
        """Adds another table.

        Args:
            other: With as many columns.
            rows: int64 [rows of other] which row of this table each row of the other in use is.

        Raises:
            ConfigError: The columns differ.
        """
        if other._num_columns != self._num_columns:
            raise ConfigError("exact sums with different columns cannot be merged")
        self._count(other._terms)
        if rows.size:
            self._grow(int(rows.max()) + 1)
        for line, table in other._lines.items():
            np.add.at(self._line(line), rows, table[: rows.size])

    def table(self, num_rows: int) -> FloatArray:
        """The sums, correctly rounded, float64 [num_rows, columns]; rows never added to are 0."""
        out = np.zeros((num_rows, self._num_columns))
        if not self._lines:
            return out
        lines = sorted(self._lines)
        stack = np.stack([np.ldexp(self._lines[line], WIDTH * line) for line in lines], axis=-1)
        for row in range(min(num_rows, self._num_rows)):
            for column in range(self._num_columns):
                out[row, column] = math.fsum(stack[row, column])
        return out

    def _count(self, terms: int) -> None:
        self._terms += terms
        if self._terms > MAX_TERMS:
            raise ConfigError(f"more than {MAX_TERMS} terms: exact sums would round")

    def _grow(self, num_rows: int) -> None:
        if num_rows <= self._num_rows:
            return
        size = max(num_rows, 2 * self._num_rows)
        for line, table in self._lines.items():
            self._lines[line] = np.concatenate([table, np.zeros((size - table.shape[0], self._num_columns))])
        self._num_rows = size

    def _line(self, line: int) -> FloatArray:
        if line not in self._lines:
            self._lines[line] = np.zeros((self._num_rows, self._num_columns))
        return self._lines[line]

    def _add_whole(self, rows: IntArray, line: IntArray, whole: FloatArray) -> None:
        nonzero = whole != 0.0
        for value in np.unique(line[nonzero]):
            here = np.where(nonzero & (line == value), whole, 0.0)
            target = self._line(int(value))
            for column in np.flatnonzero(here.any(axis=0)):
                target[:, column] += np.bincount(rows, weights=here[:, column], minlength=target.shape[0])
