"""How flat token arrays fall into sequences and prompts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SequenceLayout:
    """Token -> sequence -> prompt.

    Attributes:
        offsets: int64 [num_sequences + 1]; sequence i holds tokens `offsets[i]:offsets[i + 1]`.
        clusters: int64 [num_sequences]; any label that sequences of one prompt share.
    """

    offsets: IntArray
    clusters: IntArray

    @classmethod
    def from_arrays(
        cls, offsets: npt.ArrayLike, clusters: npt.ArrayLike | None = None, *, num_tokens: int | None = None
    ) -> SequenceLayout:
        """Checks and builds a layout.

        Args:
            offsets: [num_sequences + 1], starting at 0 and never falling.
            clusters: [num_sequences] prompt of each sequence; by default each sequence is its own prompt.
            num_tokens: Where given, the length of the token arrays, which `offsets` must end at.

        Raises:
            ConfigError: The offsets or the clusters do not fit together or do not fit the tokens.
        """
        ends = np.asarray(offsets, dtype=np.int64)
        if ends.ndim != 1 or ends.size == 0 or ends[0] != 0 or np.any(np.diff(ends) < 0):
            raise ConfigError("offsets must be one-dimensional, start at 0 and never fall")
        labels = np.arange(ends.size - 1) if clusters is None else np.asarray(clusters, dtype=np.int64)
        if labels.shape != (ends.size - 1,):
            raise ConfigError(f"{labels.size} cluster labels for {ends.size - 1} sequences")
        if num_tokens is not None and ends[-1] != num_tokens:
            raise ConfigError(f"offsets end at {ends[-1]} but there are {num_tokens} tokens")
        return cls(ends, labels)

    @property
    def num_sequences(self) -> int:
        """Number of sequences, empty ones included."""
        return int(self.offsets.size - 1)

    @property
    def num_tokens(self) -> int:
        """Number of response tokens."""
        return int(self.offsets[-1])

    @cached_property
    def lengths(self) -> IntArray:
        """Response tokens of each sequence, int64 [num_sequences]."""
        return np.diff(self.offsets)

    @cached_property
    def cluster_index(self) -> IntArray:
        """Cluster of each sequence numbered 0 .. num_clusters - 1, int64 [num_sequences]."""
        return np.unique(self.clusters, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def num_clusters(self) -> int:
        """Number of prompts."""
        return int(self.cluster_index.max()) + 1 if self.num_sequences else 0

    @cached_property
    def token_sequence(self) -> IntArray:
        """Sequence of each token, int64 [num_tokens]."""
        return np.repeat(np.arange(self.num_sequences), self.lengths)

    @cached_property
    def token_position(self) -> IntArray:
        """Position of each token in its response, counted from 0, int64 [num_tokens]."""
        return np.arange(self.num_tokens) - np.repeat(self.offsets[:-1], self.lengths)

    @cached_property
    def token_cluster(self) -> IntArray:
        """Cluster index of each token, int64 [num_tokens]."""
        return np.repeat(self.cluster_index, self.lengths)

    def sequence_sums(self, values: FloatArray) -> FloatArray:
        """Sum of a per-token array over each sequence, float64 [num_sequences]; 0 for an empty one."""
        sums = np.zeros(self.num_sequences)
        filled = self.lengths > 0
        if values.size:
            # Each sequence is summed by itself: the result does not depend on what else is in the array.
            sums[filled] = np.add.reduceat(values, self.offsets[:-1][filled])
        return sums

    def token_table(self, *columns: FloatArray) -> FloatArray:
        """Sums of per-token columns and the token count for each prompt that has tokens.

        Args:
            *columns: Each float64 [num_tokens].

        Returns:
            float64 [prompts with tokens, len(columns) + 1]; the last column is the number of tokens.
        """
        counts = np.bincount(self.token_cluster, minlength=self.num_clusters).astype(np.float64)
        sums = [np.bincount(self.token_cluster, weights=c, minlength=self.num_clusters) for c in columns]
        return np.column_stack([*sums, counts])[counts > 0]

    def sequence_table(self, *columns: FloatArray) -> FloatArray:
        """Sums of per-sequence columns and the sequence count for each prompt.

        Args:
            *columns: Each float64 [num_sequences].

        Returns:
            float64 [num_clusters, len(columns) + 1]; the last column is the number of sequences.
        """
        return cluster_table(self.cluster_index, *columns)


def cluster_table(clusters: npt.ArrayLike, *columns: FloatArray) -> FloatArray:
    """Sums of columns and the number of units for each cluster.

    Args:
        clusters: int [units], any labels.
        *columns: Each float64 [units].

    Returns:
        float64 [clusters, len(columns) + 1]; the last column is the number of units.
    """
    index = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = [np.bincount(index, weights=column) for column in columns]
    return np.column_stack([*sums, np.bincount(index).astype(np.float64)])


def finite_array(values: npt.ArrayLike, what: str) -> FloatArray:
    """Reads a one-dimensional float64 array that must have entries and be finite.

    Args:
        values: Anything numpy reads; a scalar counts as one entry.
        what: What the numbers are, for the error.

    Raises:
        ConfigError: More than one dimension.
        InconclusiveError: No entry, or one that is NaN or infinite.
    """
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if array.ndim != 1:
        raise ConfigError(f"{what}: expected one dimension, got shape {array.shape}")
    if array.size == 0:
        raise InconclusiveError(f"{what}: nothing to measure, there are no entries")
    if not np.all(np.isfinite(array)):
        bad = int(np.count_nonzero(~np.isfinite(array)))
        raise InconclusiveError(
            f"{what}: {bad} of {array.size} entries are not finite",
            hint="exclude these tokens first; the check MP102 counts them",
        )
    return array
