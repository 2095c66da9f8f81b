"""Buckets and the probability map of a trace in parts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.buckets import (
    ENTROPY_EDGES,
    POSITION_EDGES,
    PROBABILITY_EDGES,
    Bucket,
    Histogram2D,
    bucket_of,
    bucket_sums,
    buckets_from_sums,
    probability_histogram,
)
from mismatch_probe.stats.exact_sums import ExactSums
from mismatch_probe.stats.layout import FloatArray, IntArray

DENSE = 4096


class _Partition:
    """Sums of one partition of the tokens; rows by label, numbered as they come."""

    def __init__(self) -> None:
        self._labels: dict[int, int] = {}
        self._sums = ExactSums(4)
        self._overflown: set[int] = set()

    def update(self, labels: IntArray, log_ratio: FloatArray, k3: FloatArray) -> None:
        """Adds tokens by int64 [tokens] label."""
        if int(labels.min()) >= 0 and int(labels.max()) < DENSE:
            sums = bucket_sums(labels, log_ratio, int(labels.max()) + 1, k3=k3)
            names = np.flatnonzero(sums[:, 3])
            sums = sums[names]
        else:
            names, place = np.unique(labels, return_inverse=True)
            sums = bucket_sums(place, log_ratio, names.size, k3=k3)
        self._overflown |= {int(name) for name in names[~np.isfinite(sums[:, 2])]}
        self._sums.add(self._rows(names), np.where(np.isfinite(sums), sums, 0.0))

    def merge(self, other: _Partition) -> None:
        """Adds another partition."""
        names = np.array(sorted(other._labels, key=other._labels.__getitem__), dtype=np.int64)
        self._sums.merge(other._sums, self._rows(names))
        self._overflown |= other._overflown

    def sums(self) -> tuple[IntArray, FloatArray]:
        """Labels, rising, and their sums float64 [labels, 4]."""
        labels = np.array(sorted(self._labels), dtype=np.int64)
        table = self._sums.table(len(self._labels))
        rows = table[[self._labels[int(label)] for label in labels]] if labels.size else table
        rows[[int(label) in self._overflown for label in labels], 2] = np.inf
        return labels, rows

    def _rows(self, names: IntArray) -> IntArray:
        return np.array([self._labels.setdefault(int(n), len(self._labels)) for n in names], dtype=np.int64)


class BucketSums:
    """Tokens by probability and position, and by entropy and token class where these are known."""

    def __init__(self) -> None:
        self._partitions = {
            name: _Partition() for name in ("probability", "position", "entropy", "token_class")
        }
        self._known: tuple[bool, bool] | None = None

    def update(
        self,
        log_ratio: FloatArray,
        k3: FloatArray,
        probability: FloatArray,
        position: FloatArray,
        entropy: npt.ArrayLike | None,
        token_class: npt.ArrayLike | None,
    ) -> None:
        """Adds tokens, every array [tokens], after `note`."""
        places = {
            "probability": bucket_of(probability, PROBABILITY_EDGES),
            "position": bucket_of(position, POSITION_EDGES),
        }
        if entropy is not None:
            places["entropy"] = bucket_of(np.asarray(entropy, dtype=np.float64), ENTROPY_EDGES)
        if token_class is not None:
            places["token_class"] = np.asarray(token_class, dtype=np.int64)
        for name, place in places.items():
            self._partitions[name].update(place, log_ratio, k3)

    def merge(self, other: BucketSums) -> None:
        """Adds other tokens."""
        if other._known is not None:
            self._note(other._known)
        for name, partition in self._partitions.items():
            partition.merge(other._partitions[name])

    def by_edges(self, name: str, edges: npt.ArrayLike) -> tuple[Bucket, ...]:
        """Buckets of a partition with edges."""
        labels, sums = self._partitions[name].sums()
        bounds = np.asarray(edges, dtype=np.float64)
        return buckets_from_sums(sums, bounds[labels], bounds[labels + 1])

    def probability(self) -> tuple[Bucket, ...]:
        """By geometric-mean probability."""
        return self.by_edges("probability", PROBABILITY_EDGES)

    def position(self) -> tuple[Bucket, ...]:
        """By position in the response."""
        return self.by_edges("position", POSITION_EDGES)

    def entropy(self) -> tuple[Bucket, ...] | None:
        """By entropy, or None where it was not given."""
        return self.by_edges("entropy", ENTROPY_EDGES) if self._known and self._known[0] else None

    def token_class(self) -> tuple[Bucket, ...] | None:
        """By token class, or None where it was not given."""
        if not self._known or not self._known[1]:
            return None
        labels, sums = self._partitions["token_class"].sums()
        return buckets_from_sums(sums, labels.astype(np.float64), labels.astype(np.float64))

    def note(self, entropy: npt.ArrayLike | None, token_class: npt.ArrayLike | None, num_tokens: int) -> None:
        """Checks what a part brings, before anything is added.

        Raises:
            ConfigError: Entropies or classes of another length, or given for some parts only.
        """
        for name, values in (("entropy", entropy), ("token_class", token_class)):
            if values is not None and np.shape(values) != (num_tokens,):
                raise ConfigError(f"{name} must have one entry a token")
        self._note((entropy is not None, token_class is not None))

    def _note(self, known: tuple[bool, bool]) -> None:
        if self._known is not None and self._known != known:
            raise ConfigError("entropies and token classes must be given for every part or for none")
        self._known = known


class HistogramSums:
    """The 2-D histogram over probability and size of the log-ratio, in integers: order does not matter."""

    def __init__(self) -> None:
        self._sum: Histogram2D | None = None
        self._counts = np.zeros((0, 0), dtype=np.int64)
        self._zeros = 0

    def update(self, train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> None:
        """Counts tokens."""
        self._add(probability_histogram(train_logprobs, rollout_logprobs))

    def merge(self, other: HistogramSums) -> None:
        """Adds another histogram."""
        if other._sum is not None:
            self._add(other.histogram())

    def histogram(self) -> Histogram2D:
        """The counts so far."""
        if self._sum is None:
            return probability_histogram(np.zeros(0), np.zeros(0))
        counts = tuple(tuple(int(c) for c in row) for row in self._counts)
        return Histogram2D(self._sum.x_edges, self._sum.y_edges, counts, self._zeros)

    def _add(self, part: Histogram2D) -> None:
        counts = np.array(part.counts, dtype=np.int64)
        self._counts = counts if self._sum is None else self._counts + counts
        self._zeros += part.num_exact_zero
        self._sum = self._sum or part
