"""How far a token is displaced, given how likely the rollout engine held it: quantile functions by probability."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mismatch_probe.drift.log_odds import log_odds, logprobs_of
from mismatch_probe.drift.tails import ParetoTail, fit_tail
from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.layout import FloatArray, IntArray

MIN_CELL = 60
MAX_CELLS = 40
GROWTH = 1.07
LEAST_LEVEL = 1e-6
_MIDDLE = (0.16, 0.18, 0.2, 0.225, 0.25, 0.275, 0.3, 0.33, 0.36, 0.4, 0.43, 0.46, 0.5)
_STRETCHED = 0.02
_STRETCHED_TOKENS = 6.0
_STRETCH = (0.7, 1.4)
_TIED = 0.01
_IDLE = 0.005
_PROBES = 300


@dataclass(frozen=True, slots=True)
class Cell:
    """Tokens of similar probability.

    Attributes:
        max_logprob: Largest rollout log-probability of the cell, nats; the last cell takes all above it too.
        n: Tokens it was measured on.
        levels: Rising probabilities from 0 to 1.
        displacements: Quantiles of logit(pi) - logit(mu) at these levels, never falling.
        lower: Law of the lowest displacements, in place of the knots there; None where none fits.
        upper: Of the highest.
    """

    max_logprob: float
    n: int
    levels: tuple[float, ...]
    displacements: tuple[float, ...]
    lower: ParetoTail | None
    upper: ParetoTail | None

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.displacements) or len(self.levels) < 2 or self.n < 1:
            raise ConfigError("a drift profile's cell needs one displacement for each of 2 levels or more")
        levels, knots = np.array(self.levels), np.array(self.displacements)
        if (
            levels[0] != 0.0
            or levels[-1] != 1.0
            or np.any(np.diff(levels) <= 0)
            or np.any(np.diff(knots) < 0)
        ):
            raise ConfigError(
                "a drift profile's cell must have levels rising from 0 to 1 and displacements that never fall"
            )

    def quantile(self, probability: FloatArray) -> FloatArray:
        """Displacements at probabilities in (0, 1), float64 of the same shape."""
        found = np.interp(probability, self.levels, self.displacements)
        for tail, beyond, sign in ((self.lower, probability, -1.0), (self.upper, 1.0 - probability, 1.0)):
            if tail is not None:
                inside = beyond < tail.mass
                found[inside] = tail.edge + sign * tail.excess(beyond[inside] / tail.mass)
        return np.asarray(found)

    def probability(self, displacement: FloatArray, generator: np.random.Generator) -> FloatArray:
        """The mid-distribution of measured displacements: uniform where the cell is the truth.

        Ties (displacements of exactly 0 are common) are spread over the levels they cover.
        """
        knots = np.array(self.displacements)
        low = np.searchsorted(knots, displacement, side="left")
        high = np.searchsorted(knots, displacement, side="right") - 1
        levels = np.array(self.levels)
        # np.interp takes the last of tied knots; between the first and the last every level is as good.
        between = np.interp(displacement, knots, levels)
        tied = high > low
        first, last = levels[np.minimum(low, levels.size - 1)], levels[np.maximum(high, 0)]
        spread = first + (last - first) * generator.random(displacement.size)
        return np.clip(np.where(tied, spread, between), 1e-9, 1.0 - 1e-9)

    def pivots(self) -> tuple[float, float]:
        """Displacements at 2 % and 98 %, or farther in where that is fewer than 6 tokens or a tail begins there."""
        masses = [
            max(_STRETCHED, _STRETCHED_TOKENS / self.n, 0.0 if tail is None else tail.mass)
            for tail in (self.lower, self.upper)
        ]
        low, high = self.quantile(np.array([masses[0], 1.0 - masses[1]]))
        return float(low), float(high)

    def stretched(self, lower: float, upper: float) -> Cell:
        """The cell with the outermost displacements stretched.

        The bulk stays: in low precision it has peaks at 0 and at whole rounding steps, which belong where they are.

        Args:
            lower: Factor, above 0, of distances beyond the lower pivot.
            upper: Of those beyond the upper.
        """
        knots = np.array(self.displacements)
        low, high = self.pivots()
        knots += (lower - 1.0) * np.minimum(knots - low, 0.0) + (upper - 1.0) * np.maximum(knots - high, 0.0)
        tails = [
            None
            if tail is None
            else ParetoTail(
                tail.mass, pivot + factor * (tail.edge - pivot), tail.shape, tail.scale * factor, tail.least
            )
            for tail, pivot, factor in ((self.lower, low, lower), (self.upper, high, upper))
        ]
        moved = tuple(float(d) for d in np.maximum.accumulate(knots))
        return Cell(self.max_logprob, self.n, self.levels, moved, tails[0], tails[1])


@dataclass(frozen=True, slots=True)
class Marginal:
    """Cells by rising probability of the token.

    Attributes:
        cells: At least one.
    """

    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        edges = [cell.max_logprob for cell in self.cells]
        if not edges or any(not low < high for low, high in itertools.pairwise(edges)):
            raise ConfigError("a drift profile's cells must be in the order of their max_logprob")

    def place(self, rollout_logprobs: FloatArray) -> IntArray:
        """Which cell each token falls into, int64 [tokens]."""
        edges = np.array([cell.max_logprob for cell in self.cells[:-1]])
        return np.searchsorted(edges, rollout_logprobs, side="left").astype(np.int64)

    def displacement(self, rollout_logprobs: FloatArray, probability: FloatArray) -> FloatArray:
        """Displacements at given probabilities.

        Args:
            rollout_logprobs: float64 [tokens], nats.
            probability: float64 [tokens] in (0, 1).
        """
        place, found = self.place(rollout_logprobs), np.zeros(probability.size)
        for index, cell in enumerate(self.cells):
            members = place == index
            found[members] = cell.quantile(probability[members])
        return found

    def probability(
        self, rollout_logprobs: FloatArray, displacement: FloatArray, generator: np.random.Generator
    ) -> FloatArray:
        """The inverse of `displacement`, ties spread at random."""
        place, found = self.place(rollout_logprobs), np.zeros(displacement.size)
        for index, cell in enumerate(self.cells):
            members = place == index
            found[members] = cell.probability(displacement[members], generator)
        return found


def fit_marginal(train: FloatArray, rollout: FloatArray) -> Marginal:
    """Measures the quantile functions.

    Cells are cut so that each holds about the same share of the sum of sqrt |log_ratio|, and of the tokens where that is
    small. The outermost 2 % (6 tokens or more) of each side of a cell are then stretched, by at most 1.4 either way, so
    that on the measured tokens mean and mean square of the log-ratio come out as measured, which knots, tails and cells
    bend a little.

    Args:
        train: float64 [tokens] log pi, below 0.
        rollout: float64 [tokens] log mu, below 0.
    """
    return Marginal(tuple(_fit_cell(train[group], rollout[group]) for group in _groups(train, rollout)))


def cell_edges(train: FloatArray, rollout: FloatArray) -> tuple[float, ...]:
    """The `max_logprob` of the cells that `fit_marginal` would cut."""
    return tuple(float(rollout[group].max()) for group in _groups(train, rollout))


def _groups(train: FloatArray, rollout: FloatArray) -> list[IntArray]:
    order = np.argsort(rollout, kind="stable")
    size = np.sqrt(np.abs(train - rollout)[order])
    share = 0.25 * np.arange(1, order.size + 1) / order.size
    share += 0.75 * np.cumsum(size) / max(float(size.sum()), 1e-300)
    count = int(np.clip(order.size // MIN_CELL, 1, MAX_CELLS))
    cuts = np.searchsorted(share, np.arange(1, count) / count)
    return _large_enough(order, rollout, [0, *cuts.tolist(), order.size])


def _large_enough(order: IntArray, rollout: FloatArray, ends: Sequence[int]) -> list[IntArray]:
    """Cuts between different probabilities that leave 60 tokens on each side where there are so many."""
    groups, begin = [], 0
    for end in ends[1:-1]:
        while 0 < end < order.size and rollout[order[end]] == rollout[order[end - 1]]:
            end += 1
        if end - begin >= MIN_CELL and order.size - end >= MIN_CELL:
            groups.append(order[begin:end])
            begin = end
    return [*groups, order[begin:]]


def _fit_cell(train: FloatArray, rollout: FloatArray) -> Cell:
    displacement = np.sort(log_odds(train) - log_odds(rollout))
    levels = np.unique(np.concatenate([_ladder(displacement.size), _tie_levels(displacement)]))
    # Rounded, so that a quantile between two zeros is 0 and not what is left of interpolating.
    quantiles = np.asarray(np.quantile(displacement, levels, method="hazen"), dtype=np.float64)
    levels, knots = _without_idle(levels, np.asarray(np.round(quantiles, 12), dtype=np.float64))
    tails = [fit_tail(displacement, upper=upper) for upper in (False, True)]
    cell = Cell(
        float(rollout.max()),
        displacement.size,
        tuple(float(v) for v in levels),
        tuple(float(v) for v in knots),
        *tails,
    )
    return _calibrated(cell, train - rollout, rollout)


def _ladder(n: int) -> FloatArray:
    """Levels whose distance from 0 and 1 grows by 7 % (at least by one token) at each step, from half a token on."""
    steps, at = [], max(0.5, LEAST_LEVEL * n)
    while at / n < _MIDDLE[0]:
        steps.append(at / n)
        at = max(at + 1.0, at * GROWTH)
    lower = np.array([0.0, *steps, *_MIDDLE])
    return np.unique(np.concatenate([lower, 1.0 - lower]))


def _tie_levels(ordered: FloatArray) -> FloatArray:
    """Levels at and just outside the ends of every value that 1 % of the displacements share, so that it keeps its share."""
    n = ordered.size
    starts = np.flatnonzero(np.concatenate([[True], np.diff(ordered) > 0.0]))
    ends = np.append(starts[1:], n)
    common = (ends - starts >= 2) & (ends - starts >= _TIED * n)
    edges = np.concatenate(
        [starts[common] - 0.5, starts[common] + 0.5, ends[common] - 0.5, ends[common] + 0.5]
    )
    return np.asarray(np.clip(edges / n, 0.0, 1.0), dtype=np.float64)


def _without_idle(levels: FloatArray, knots: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Leaves out knots that a line between their neighbours meets within half a per cent (Douglas and Peucker 1973)."""
    near = _IDLE * np.maximum(np.abs(knots), 0.1 * float(np.abs(knots).mean()))
    kept, spans = {0, levels.size - 1}, [(0, levels.size - 1)]
    while spans:
        low, high = spans.pop()
        inner = np.arange(low + 1, high)
        if inner.size:
            line = np.interp(levels[inner], levels[[low, high]], knots[[low, high]])
            off = np.abs(knots[inner] - line) / np.maximum(near[inner], 1e-300)
            worst = int(inner[off.argmax()])
            if off.max() > 1.0:
                kept.add(worst)
                spans += [(low, worst), (worst, high)]
    rows = sorted(kept)
    return levels[rows], knots[rows]


def _calibrated(cell: Cell, log_ratio: FloatArray, rollout: FloatArray) -> Cell:
    mean, square = float(log_ratio.mean()), float((log_ratio**2).mean())
    if square == 0.0:
        return cell
    probes = np.sort(rollout)[np.linspace(0, rollout.size - 1, min(_PROBES, rollout.size)).astype(np.int64)]
    odds = log_odds(probes)[:, None]
    probability, weights = _quadrature(cell)
    raw, (low, high) = cell.quantile(probability), cell.pivots()
    beyond = np.stack([np.minimum(raw - low, 0.0), np.maximum(raw - high, 0.0)])
    factors = np.ones(2)
    for _ in range(6):
        train = logprobs_of(odds + raw + (factors - 1.0) @ beyond)
        drift = train - probes[:, None]
        miss = np.array([mean - (drift @ weights).mean(), square - (drift**2 @ weights).mean()])
        slope = -np.expm1(train)
        moments = np.stack([slope.mean(axis=0), 2.0 * (drift * slope).mean(axis=0)]) * weights @ beyond.T
        if not np.linalg.cond(moments / np.maximum(np.abs(moments).max(axis=1, keepdims=True), 1e-300)) < 1e6:
            break
        factors = np.clip(factors + np.linalg.solve(moments, miss), *_STRETCH)
    return cell.stretched(float(factors[0]), float(factors[1]))


def _quadrature(cell: Cell) -> tuple[FloatArray, FloatArray]:
    """Levels and their weights: four midpoints in each step between levels."""
    edges = [np.array(cell.levels)]
    for tail, sign in ((cell.lower, 0.0), (cell.upper, 1.0)):
        if tail is not None:
            inside = tail.mass * np.geomspace(tail.least / 8, 1.0, 40)
            edges.append(np.abs(sign - inside))
    ends = np.unique(np.concatenate(edges))
    fine = np.interp(np.arange(0, 4 * (ends.size - 1) + 1) / 4, np.arange(ends.size), ends)
    return np.asarray((fine[1:] + fine[:-1]) / 2), np.diff(fine)
