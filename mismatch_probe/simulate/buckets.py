"""The weights of a simulation by length of the response and by log W."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mismatch_probe.simulate.response import LengthBucket, WeightPoints

FloatArray = npt.NDArray[np.float64]


def length_buckets(
    lengths: FloatArray,
    log_weight: FloatArray,
    advantages: FloatArray,
    weight: FloatArray,
    *,
    by_token: bool,
    buckets: int = 8,
) -> list[LengthBucket]:
    """Buckets of equal width in log length, from the shortest response to the longest; no empty ones.

    Args:
        lengths: Tokens of each sequence, [sequences], at least 1.
        log_weight: log W, nats, [sequences].
        advantages: [sequences].
        weight: Mean phi of each sequence, [sequences].
        by_token: Whether means are over tokens (each sequence counts by its length) or over sequences.
        buckets: At most that many.
    """
    edges = np.geomspace(lengths.min(), lengths.max() + 1.0, buckets + 1)
    place = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, buckets - 1)
    count = lengths if by_token else np.ones(len(lengths))
    rows = []
    for bucket in np.unique(place):
        here = place == bucket
        rows.append(
            LengthBucket(
                low=int(lengths[here].min()),
                high=int(lengths[here].max()),
                n=int(here.sum()),
                mean=float(np.average(weight[here], weights=count[here])),
                positive=_mean(weight, count, here & (advantages > 0)),
                negative=_mean(weight, count, here & (advantages < 0)),
                mean_log_weight=float(log_weight[here].mean()),
            )
        )
    return rows


def weight_points(
    log_weight: FloatArray, advantages: FloatArray, weight: FloatArray, *, bins: int = 24
) -> WeightPoints:
    """Mean phi in bins of log W of equal width.

    Args:
        log_weight: log W, nats, [sequences].
        advantages: [sequences].
        weight: Mean phi of each sequence, [sequences].
        bins: At most that many.
    """
    low, high = float(log_weight.min()), float(log_weight.max())
    edges = np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.5, low + 0.5])
    place = np.clip(np.searchsorted(edges, log_weight, side="right") - 1, 0, len(edges) - 2)
    used = np.unique(place)
    count = np.ones(len(weight))
    return WeightPoints(
        log_weight=np.asarray((edges[used] + edges[used + 1]) / 2),
        positive=[_mean(weight, count, (place == b) & (advantages > 0)) for b in used],
        negative=[_mean(weight, count, (place == b) & (advantages < 0)) for b in used],
        n=np.array([int((place == b).sum()) for b in used], dtype=np.int64),
    )


def _mean(weight: FloatArray, count: FloatArray, here: npt.NDArray[np.bool_]) -> float | None:
    return float(np.average(weight[here], weights=count[here])) if here.any() else None
