"""Sums by prompt that grow part by part: what intervals over prompts are made of."""

from __future__ import annotations

from typing import Self

import numpy as np

from mismatch_probe.errors import ConfigError
from mismatch_probe.routing.agreement import FloatArray, IntArray


class PromptSums:
    """A table with one row a prompt, in any order of parts.

    Args:
        columns: Columns of the table.
    """

    def __init__(self, columns: int) -> None:
        self._rows: dict[int, int] = {}
        self._table = np.zeros((0, columns), dtype=np.float64)

    def add(self, prompts: IntArray, sums: FloatArray) -> None:
        """Adds sums.

        Args:
            prompts: int64 [n] labels, any number of times each.
            sums: float64 [n, columns].

        Raises:
            ConfigError: Another number of columns or of rows.
        """
        if sums.shape != (prompts.size, self._table.shape[1]):
            raise ConfigError(f"sums of shape {sums.shape} do not fit {self._table.shape[1]} columns")
        places = np.array([self._rows.setdefault(int(p), len(self._rows)) for p in prompts], dtype=np.int64)
        if len(self._rows) > len(self._table):
            # Doubled, so that many small parts copy each row a few times only.
            grown = np.zeros((max(len(self._rows), 2 * len(self._table)), self._table.shape[1]))
            grown[: len(self._table)] = self._table
            self._table = grown
        np.add.at(self._table, places, sums)

    def merge(self, other: Self) -> None:
        """Adds another table."""
        labels = np.array(list(other._rows), dtype=np.int64)
        self.add(labels, other._table[: labels.size])

    def table(self) -> FloatArray:
        """float64 [prompts, columns], by rising label."""
        return self._table[[self._rows[label] for label in sorted(self._rows)]]
