"""The weights of a simulation by length of the response and by size of the drift."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mismatch_probe.simulate.intervals import quotient
from mismatch_probe.simulate.response import WeightPoints
from mismatch_probe.simulate.sums import Ground, SequenceSums

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

LENGTH_BUCKETS = 8
LOG_WEIGHT_BINS = 24


def bucket_places(lengths: FloatArray, *, buckets: int = LENGTH_BUCKETS) -> list[BoolArray]:
    """Buckets of equal width in log length, from the shortest response to the longest; no empty ones.

    Args:
        lengths: Tokens of each sequence, [sequences], at least 1.
        buckets: At most that many.

    Returns:
        Which sequences each bucket holds, bool [sequences], short ones first.
    """
    edges = np.geomspace(lengths.min(), lengths.max() + 1.0, buckets + 1)
    place = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, buckets - 1)
    return [place == bucket for bucket in np.unique(place)]


def weight_points(level: str, ground: Ground, sums: SequenceSums) -> WeightPoints:
    """Mean phi in bins of equal width: of log W for a method of sequences, of the log-ratio for one of tokens.

    Args:
        level: "token" or "sequence".
        ground: What all corrections share.
        sums: Of this one.
    """
    times = 2 if ground.assumed else 1
    if level == "token":
        edges, counts, total, weight = (
            ground.token_edges,
            ground.token_counts,
            ground.token_total,
            sums.binned,
        )
    else:
        low, high = float(ground.log_weight.min()), float(ground.log_weight.max())
        flat = not high - low > 1e-9 * max(1.0, abs(high))
        edges = np.array([low - 0.5, low + 0.5]) if flat else np.linspace(low, high, LOG_WEIGHT_BINS + 1)
        bins = len(edges) - 1
        place = np.clip(np.searchsorted(edges, ground.log_weight, side="right") - 1, 0, bins - 1)
        signs = [ground.advantages > 0, ground.advantages < 0]
        mean = sums.weight / ground.lengths
        counts = np.stack([np.bincount(place[sign], minlength=bins) for sign in signs]).astype(np.float64)
        weight = np.stack([np.bincount(place[sign], mean[sign], bins) for sign in signs])
        total = np.bincount(place, minlength=bins).astype(np.float64)
    positive, negative = (_or_none(quotient(weight[row], counts[row])) for row in (0, 1))
    return WeightPoints(
        over="log_ratio" if level == "token" else "log_weight",
        edges=edges,
        positive=positive,
        negative=negative,
        n=(total / times).astype(np.int64),
    )


def _or_none(values: FloatArray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
