"""phi as a function of the drift, for a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mismatch_probe.simulate.response import WeightCurve
from mismatch_probe.simulate.sums import Ground

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod

FloatArray = npt.NDArray[np.float64]

POINTS = 81
_MAX_TOKENS = 500_000
# Where every kernel, cap and clip in use has its features.
_LOG_WEIGHT_SPAN = (-6.0, 3.0)
_LOG_RATIO_SPAN = (-2.0, 2.0)
# Rollout log-probability of the tokens of a token curve: low enough that e^2 times it is still a probability.
_ROLLOUT = -3.0
_NEIGHBOUR = 0.3


def weight_curve(method: WeightMethod, ground: Ground, *, points: int = POINTS) -> WeightCurve | None:
    """The curve over where drift was measured and over where methods have their features, without staleness.

    A method of sequences: every point is a response of the median length whose log-ratio is the same at each
    token. A method of tokens: every point is a token of rollout probability e^-3 between two others.

    Args:
        method: The correction.
        ground: The measured sequences.
        points: Of the grid; fewer where responses are so long that the grid would not fit in memory.

    Returns:
        None where a token's phi hangs on more than its own ratio (prefixes, means, batch-wide rules).
    """
    if method.level == "sequence":
        length = max(1, int(np.median(ground.lengths)))
        count = max(21, min(points, _MAX_TOKENS // length))
        grid = _grid(ground.log_weight, _LOG_WEIGHT_SPAN, count)
        offsets = np.arange(grid.size + 1) * length
        positive, negative = (
            _phi(method, np.repeat(grid / length, length), offsets, sign)[offsets[:-1]]
            for sign in (1.0, -1.0)
        )
        return WeightCurve("log_weight", grid, _short(positive), _short(negative), length, None)
    grid = _grid(ground.token_edges, _LOG_RATIO_SPAN, points)
    offsets = np.arange(grid.size + 1) * 3
    curves = []
    for sign in (1.0, -1.0):
        alone, beside = (
            _phi(
                method,
                np.stack([np.full_like(grid, other), grid, np.full_like(grid, other)], 1).ravel(),
                offsets,
                sign,
            )
            for other in (0.0, _NEIGHBOUR)
        )
        if not np.array_equal(alone[1::3], beside[1::3]):
            return None
        curves.append(_short(alone[1::3]))
    return WeightCurve("log_ratio", grid, curves[0], curves[1], None, float(np.exp(_ROLLOUT)))


def _grid(measured: FloatArray, span: tuple[float, float], points: int) -> FloatArray:
    """Half of the points over the span, half over what was measured: a clip at 4e-4 would else be a slope."""
    low, high = float(measured.min()), float(measured.max())
    near = np.linspace(min(1.5 * low, -1e-3), max(1.5 * high, 1e-3), points - points // 2)
    return np.unique(_short(np.concatenate([np.linspace(*span, points // 2), near])))


def _phi(
    method: WeightMethod, log_ratio: FloatArray, offsets: npt.NDArray[np.int64], sign: float
) -> FloatArray:
    from mismatch_probe.weights import Batch

    # log mu so low that log pi stays a log-probability.
    rollout = np.minimum(_ROLLOUT, -1e-3 - log_ratio)
    batch = Batch.from_arrays(rollout + log_ratio, rollout, offsets, np.full(len(log_ratio), sign))
    return np.asarray(method.coefficients(batch).numpy(), dtype=np.float64)


def _short(values: FloatArray) -> FloatArray:
    """Six significant digits: a plot needs no more, and a result is not the place for the rest."""
    return np.array([float(f"{value:.6g}") for value in values])
