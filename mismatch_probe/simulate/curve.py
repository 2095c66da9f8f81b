"""phi as a function of log W, for a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mismatch_probe.simulate.response import WeightCurve

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod

FloatArray = npt.NDArray[np.float64]

_MAX_TOKENS = 1_000_000


def weight_curve(
    method: WeightMethod, log_weight: FloatArray, lengths: FloatArray, *, points: int = 121
) -> WeightCurve:
    """The curve over the range of the measured log W, and at least from -6 to 3.

    Half of the points lie where log W was measured. Every point is a response of the median length whose
    log-ratio is the same at each token, without staleness.

    Args:
        method: A sequence-level method.
        log_weight: Measured log W, nats, [sequences].
        lengths: Tokens of each sequence, [sequences].
        points: Of the grid; fewer where responses are so long that the grid would not fit in memory.
    """
    from mismatch_probe.weights import Batch

    length = max(1, int(np.median(lengths)))
    points = max(21, min(points, _MAX_TOKENS // length))
    low, high = float(log_weight.min()), float(log_weight.max())
    # Half of the points over everything, half where this run's log W lies: a clip at 4e-4 would else be a slope.
    wide = np.linspace(min(-6.0, low), max(3.0, high), points // 2)
    measured = np.linspace(min(1.5 * low, -1e-3), max(1.5 * high, 1e-3), points - points // 2)
    grid = np.unique(np.concatenate([wide, measured]))
    # Evenly spread over the tokens, and with log mu so low that log pi stays a log-probability.
    ratio = np.repeat(grid / length, length)
    rollout = np.minimum(-1.0, -1.0 - ratio)
    offsets = np.arange(grid.size + 1) * length

    def along(sign: float) -> FloatArray:
        batch = Batch.from_arrays(rollout + ratio, rollout, offsets, np.full(len(ratio), sign))
        return np.asarray(method.coefficients(batch).numpy()[offsets[:-1]], dtype=np.float64)

    return WeightCurve(log_weight=grid, positive=along(1.0), negative=along(-1.0), length=length)
