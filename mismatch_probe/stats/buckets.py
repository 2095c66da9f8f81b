"""Where the drift sits: by probability, position, entropy, token class, prompt; worst tokens and sequences.

Probability buckets use sqrt(p q), the geometric mean of the two sides' probabilities. By the rollout's
probability alone the mean log-ratio of a bucket is negative by selection, by the trainer's positive
(regression to the mean), even where the two sides differ by symmetric noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.layout import FloatArray, IntArray, SequenceLayout

PROBABILITY_EDGES = (0.0, 1e-4, 1e-3, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
POSITION_EDGES = (0.0, *(float(2**power) for power in range(31)))
ENTROPY_EDGES = (0.0, 0.01, 0.1, 0.3, 1.0, 2.0, 4.0, 16.0)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tokens of one range or class; every mean is over its tokens.

    Attributes:
        low: Lower end of the range, inclusive; for classes and prompts the label.
        high: Upper end, exclusive except for the last range; for classes and prompts the label again.
        n: Tokens; a bucket without tokens is not listed.
        mean_log_ratio: Nats.
        mean_abs_log_ratio: Nats.
        k3: Nats; None where it leaves float64.
    """

    low: float
    high: float
    n: int
    mean_log_ratio: float
    mean_abs_log_ratio: float
    k3: float | None


@dataclass(frozen=True, slots=True)
class TokenAt:
    """One token and where it is.

    Attributes:
        sequence: Index of its sequence.
        position: Index in its response.
        token: Index in the flat arrays.
        cluster: Label of its prompt.
        log_ratio: Nats.
        rollout_logprob: Nats.
        train_logprob: Nats.
    """

    sequence: int
    position: int
    token: int
    cluster: int
    log_ratio: float
    rollout_logprob: float
    train_logprob: float


@dataclass(frozen=True, slots=True)
class SequenceAt:
    """One sequence.

    Attributes:
        sequence: Its index.
        cluster: Label of its prompt.
        length: Tokens.
        log_weight: Nats.
        mean_abs_log_ratio: Nats per token.
        max_abs_log_ratio: Nats.
    """

    sequence: int
    cluster: int
    length: int
    log_weight: float
    mean_abs_log_ratio: float
    max_abs_log_ratio: float


@dataclass(frozen=True, slots=True)
class Histogram2D:
    """Tokens by probability and size of the log-ratio.

    Attributes:
        x_edges: Geometric-mean probability, log-spaced, ends included.
        y_edges: log10 |log_ratio|.
        counts: [len(x_edges) - 1][len(y_edges) - 1]; entries outside the edges count in the outermost cell.
        num_exact_zero: Tokens with log_ratio exactly 0, which have no place on a logarithmic axis.
    """

    x_edges: tuple[float, ...]
    y_edges: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]
    num_exact_zero: int


def geometric_mean_probability(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> FloatArray:
    """sqrt(p q) of the sampled token, float64 [tokens]; at most 1."""
    probability: FloatArray = np.exp(np.minimum(0.5 * (train_logprobs + rollout_logprobs), 0.0))
    return probability


def buckets_by_value(
    values: npt.ArrayLike, log_ratio: FloatArray, edges: Sequence[float]
) -> tuple[Bucket, ...]:
    """Buckets of tokens by any per-token number (probability, entropy, position).

    Args:
        values: [tokens]; what lies outside the edges falls into the outermost buckets.
        log_ratio: float64 [tokens], nats.
        edges: Rising; low ends are inclusive.

    Raises:
        ConfigError: The lengths differ or the edges do not rise.
    """
    array, bounds = np.asarray(values, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    if array.shape != log_ratio.shape or bounds.size < 2 or np.any(np.diff(bounds) <= 0):
        raise ConfigError("values and log_ratio must be of one length, and edges must rise")
    sums = bucket_sums(bucket_of(array, bounds), log_ratio, bounds.size - 1)
    return buckets_from_sums(sums, bounds[:-1], bounds[1:])


def buckets_by_label(labels: npt.ArrayLike, log_ratio: FloatArray) -> tuple[Bucket, ...]:
    """Buckets of tokens by a whole-number label (token class, prompt); `low` and `high` are the label.

    Raises:
        ConfigError: The lengths differ.
    """
    names, place = np.unique(np.asarray(labels), return_inverse=True)
    if place.shape != log_ratio.shape:
        raise ConfigError("labels and log_ratio must be of one length")
    labels_as_bounds = names.astype(np.float64)
    return buckets_from_sums(bucket_sums(place, log_ratio, names.size), labels_as_bounds, labels_as_bounds)


def probability_buckets(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> tuple[Bucket, ...]:
    """Buckets by sqrt(p q) with edges from 1e-4 to 1 that resolve both ends."""
    probability = geometric_mean_probability(train_logprobs, rollout_logprobs)
    return buckets_by_value(probability, train_logprobs - rollout_logprobs, PROBABILITY_EDGES)


def position_buckets(log_ratio: FloatArray, layout: SequenceLayout) -> tuple[Bucket, ...]:
    """Buckets by position in the response: 0, 1, 2-3, 4-7, 8-15 and so on, doubling."""
    return buckets_by_value(layout.token_position, log_ratio, POSITION_EDGES)


def bucket_of(values: FloatArray, edges: npt.ArrayLike) -> IntArray:
    """Index of the bucket of each value, int64; outermost buckets take what lies outside."""
    bounds = np.asarray(edges, dtype=np.float64)
    return np.clip(np.searchsorted(bounds, values, side="right") - 1, 0, bounds.size - 2).astype(np.int64)


def bucket_sums(
    place: IntArray, log_ratio: FloatArray, size: int, *, k3: FloatArray | None = None
) -> FloatArray:
    """Sums of l, |l|, K3 and the number of tokens of each bucket, float64 [size, 4].

    Args:
        place: int64 [tokens] bucket of each token.
        log_ratio: float64 [tokens], nats.
        size: Number of buckets.
        k3: float64 [tokens], where it was computed already.
    """
    columns = (log_ratio, np.abs(log_ratio), token_k3(log_ratio) if k3 is None else k3)
    with np.errstate(over="ignore"):
        sums = [np.bincount(place, weights=column, minlength=size) for column in columns]
    return np.column_stack([*sums, np.bincount(place, minlength=size).astype(np.float64)])


def buckets_from_sums(sums: FloatArray, low: FloatArray, high: FloatArray) -> tuple[Bucket, ...]:
    """Buckets that have tokens, from `bucket_sums`.

    Args:
        sums: float64 [buckets, 4].
        low: float64 [buckets].
        high: float64 [buckets].
    """
    result = []
    for index in np.flatnonzero(sums[:, 3]):
        n = int(sums[index, 3])
        mean, mean_abs, k3 = (float(v) / n for v in sums[index, :3])
        finite_k3 = k3 if np.isfinite(k3) else None
        result.append(Bucket(float(low[index]), float(high[index]), n, mean, mean_abs, finite_k3))
    return tuple(result)


def worst_tokens(
    train_logprobs: FloatArray, rollout_logprobs: FloatArray, layout: SequenceLayout, count: int = 20
) -> tuple[TokenAt, ...]:
    """The tokens with the largest |log_ratio|, worst first; ties in the order of the tokens."""
    log_ratio = train_logprobs - rollout_logprobs
    order = np.lexsort((np.arange(log_ratio.size), -np.abs(log_ratio)))[:count]
    return tuple(
        TokenAt(
            sequence=int(layout.token_sequence[i]),
            position=int(layout.token_position[i]),
            token=int(i),
            cluster=int(layout.clusters[layout.token_sequence[i]]),
            log_ratio=float(log_ratio[i]),
            rollout_logprob=float(rollout_logprobs[i]),
            train_logprob=float(train_logprobs[i]),
        )
        for i in order
    )


def worst_sequences(log_ratio: FloatArray, layout: SequenceLayout, count: int = 20) -> tuple[SequenceAt, ...]:
    """The sequences with the largest |log W|, worst first; ties in the order of the sequences."""
    log_weight = layout.sequence_sums(log_ratio)
    absolute = layout.sequence_sums(np.abs(log_ratio))
    order = np.lexsort((np.arange(log_weight.size), -np.abs(log_weight)))[:count]
    result = []
    for i in order:
        tokens = log_ratio[layout.offsets[i] : layout.offsets[i + 1]]
        result.append(
            SequenceAt(
                sequence=int(i),
                cluster=int(layout.clusters[i]),
                length=int(tokens.size),
                log_weight=float(log_weight[i]),
                mean_abs_log_ratio=float(absolute[i]) / max(int(tokens.size), 1),
                max_abs_log_ratio=float(np.abs(tokens).max()) if tokens.size else 0.0,
            )
        )
    return tuple(result)


def probability_histogram(
    train_logprobs: FloatArray, rollout_logprobs: FloatArray, *, x_bins: int = 48, y_bins: int = 60
) -> Histogram2D:
    """Counts over sqrt(p q), log-spaced from 1e-6 to 1, and log10 |log_ratio| from -8 to 2."""
    log_ratio = train_logprobs - rollout_logprobs
    x_edges, y_edges = np.logspace(-6.0, 0.0, x_bins + 1), np.linspace(-8.0, 2.0, y_bins + 1)
    drifted = log_ratio != 0.0
    log10_probability = 0.5 * (train_logprobs + rollout_logprobs)[drifted] / np.log(10.0)
    x = np.floor((log10_probability + 6.0) / 6.0 * x_bins)
    y = np.floor((np.log10(np.abs(log_ratio[drifted])) + 8.0) / 10.0 * y_bins)
    cell = np.clip(x, 0, x_bins - 1) * y_bins + np.clip(y, 0, y_bins - 1)
    counts = np.bincount(cell.astype(np.int64), minlength=x_bins * y_bins).reshape(x_bins, y_bins)
    return Histogram2D(
        x_edges=tuple(float(edge) for edge in x_edges),
        y_edges=tuple(float(edge) for edge in y_edges),
        counts=tuple(tuple(int(c) for c in row) for row in counts),
        num_exact_zero=int(np.count_nonzero(~drifted)),
    )
