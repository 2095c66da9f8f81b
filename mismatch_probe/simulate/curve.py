"""phi as a function of the drift, for a plot."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mismatch_probe.simulate.response import WeightCurve
from mismatch_probe.simulate.sums import Ground

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod

FloatArray = npt.NDArray[np.float64]

POINTS = 41
# phi may change by this much between two points; where it changes by more, points are put between them.
_STEP = 0.2
_ROUNDS = 8
_MOST_POINTS = 160
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
    token. A method of tokens: every point is a token of rollout probability e^-3 between two others. Points are
    denser where phi jumps, so that a clip is drawn as a step.

    Args:
        method: The correction.
        ground: The measured sequences.
        points: Of the grid to begin with; fewer where responses are so long that they would not fit in memory.

    Returns:
        None where a token's phi hangs on more than its own ratio (prefixes, means, batch-wide rules).
    """
    if method.level == "sequence":
        length = max(1, int(np.median(ground.lengths)))
        count = max(21, min(points, _MAX_TOKENS // length))
        curve = _refine(
            lambda at: _of_responses(method, at, length), _grid(ground.log_weight, _LOG_WEIGHT_SPAN, count)
        )
        return WeightCurve("log_weight", *curve, length=length, probability=None)
    grid = _grid(ground.token_edges, _LOG_RATIO_SPAN, points)
    if not np.array_equal(_of_tokens(method, grid, 0.0), _of_tokens(method, grid, _NEIGHBOUR)):
        return None
    curve = _refine(lambda at: _of_tokens(method, at, 0.0), grid)
    return WeightCurve("log_ratio", *curve, length=None, probability=float(np.exp(_ROLLOUT)))


def _refine(
    along: Callable[[FloatArray], FloatArray], grid: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Grid and phi for either sign; intervals over which phi changes much are halved, and halved again."""
    values = along(grid)
    for _ in range(_ROUNDS):
        # Beyond the height of any plot nothing needs to be resolved.
        shape = np.minimum(values / max(1.0, float(np.abs(values[:, grid == 0.0]).max())), 3.0)
        steep = np.abs(np.diff(shape)).max(axis=0) > _STEP
        between = _short((grid[:-1] + grid[1:])[steep] / 2)
        between = between[~np.isin(between, grid)]
        if not between.size or grid.size + between.size > _MOST_POINTS:
            break
        grid, values = np.concatenate([grid, between]), np.concatenate([values, along(between)], axis=1)
        order = np.argsort(grid, kind="stable")
        grid, values = grid[order], values[:, order]
    return grid, _short(values[0]), _short(values[1])


def _grid(measured: FloatArray, span: tuple[float, float], points: int) -> FloatArray:
    """Half of the points over the span, half over what was measured, and 0."""
    low, high = float(measured.min()), float(measured.max())
    near = np.linspace(min(1.5 * low, -1e-3), max(1.5 * high, 1e-3), points - points // 2)
    return np.unique(_short(np.concatenate([np.linspace(*span, points // 2), near, [0.0]])))


def _of_responses(method: WeightMethod, log_weight: FloatArray, length: int) -> FloatArray:
    """Phi of responses whose drift is spread evenly, float64 [2 signs, points]."""
    offsets = np.arange(log_weight.size + 1) * length
    phi = _phi(method, np.repeat(log_weight / length, length), offsets)
    return phi[:, offsets[:-1]]


def _of_tokens(method: WeightMethod, log_ratio: FloatArray, neighbours: float) -> FloatArray:
    """Phi of tokens, each between two of another log-ratio, float64 [2 signs, points]."""
    other = np.full_like(log_ratio, neighbours)
    phi = _phi(method, np.stack([other, log_ratio, other], axis=1).ravel(), np.arange(log_ratio.size + 1) * 3)
    return phi[:, 1::3]


def _phi(method: WeightMethod, log_ratio: FloatArray, offsets: npt.NDArray[np.int64]) -> FloatArray:
    from mismatch_probe.weights import Batch

    # log mu so low that log pi stays a log-probability.
    rollout = np.minimum(_ROLLOUT, -1e-3 - log_ratio)
    batches = (
        Batch.from_arrays(rollout + log_ratio, rollout, offsets, np.full(len(log_ratio), sign))
        for sign in (1.0, -1.0)
    )
    return np.stack([np.asarray(method.coefficients(batch).numpy(), dtype=np.float64) for batch in batches])


def _short(values: FloatArray) -> FloatArray:
    """Six significant digits: a plot needs no more, and a result is not the place for the rest."""
    return np.array([float(f"{value:.6g}") for value in values])
