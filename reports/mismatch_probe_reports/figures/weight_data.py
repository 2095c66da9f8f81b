"""What pictures of corrections are drawn from: phi against the drift, and how often that drift was met."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mismatch_probe_reports.reading import Json, look_up, read_array, read_mapping, read_text
from mismatch_probe_reports.sections.weights import method_label

# Further out there is no place in device coordinates.
DRAWABLE = 1e100


@dataclass(frozen=True, slots=True)
class Curve:
    """One method's response.

    Attributes:
        label: Name in the legend.
        over: "log_weight" or "log_ratio": the drift of a response or of a token.
        grid: The drift in nats [n].
        positive: phi where A > 0 [n].
        negative: phi where A < 0 [n].
        continuous: True for a function of the drift, False for means of this run in bins of it.
    """

    label: str
    over: str
    grid: NDArray[np.float64]
    positive: NDArray[np.float64]
    negative: NDArray[np.float64]
    continuous: bool

    def undisturbed(self) -> float:
        """The phi of a response without drift: 1, but for methods that scale with the length (LUSPO)."""
        at_zero = np.flatnonzero(self.grid == 0.0)
        if not self.continuous or not at_zero.size:
            return 1.0
        value = float(self.positive[at_zero[0]])
        return value if np.isfinite(value) and value > 1.5 else 1.0


@dataclass(frozen=True, slots=True)
class Spread:
    """How often a drift was met: edges [n + 1] in nats and counts [n]."""

    edges: NDArray[np.float64]
    counts: NDArray[np.float64]

    def span(self) -> tuple[float, float]:
        """The range that holds anything."""
        filled = np.flatnonzero(self.counts)
        return float(self.edges[filled[0]]), float(self.edges[filled[-1] + 1])


def read_curve(name: str, method: Json) -> Curve | None:
    """Read a method's curve, or its binned means where it is no function of the drift; None where it has neither."""
    for key in ("curve", "points"):
        raw = read_mapping(method.get(key))
        grid = read_array(raw.get("grid"))
        if key == "points":
            edges = read_array(raw.get("edges"))
            grid = (edges[:-1] + edges[1:]) / 2
        if not len(grid):
            continue
        signs = [read_array(raw.get(part)) for part in ("positive", "negative")]
        positive, negative = (
            values if len(values) == len(grid) else np.full(len(grid), np.nan) for values in signs
        )
        usable = np.isfinite(grid) & (np.isfinite(positive) | np.isfinite(negative))
        usable &= np.abs(grid) < DRAWABLE
        if usable.any():
            label = method_label(name, method) + ("" if key == "curve" else " (means of this run)")
            over = read_text(raw.get("over"), "log_weight")
            return Curve(label, over, grid[usable], positive[usable], negative[usable], key == "curve")
    return None


def read_spread(raw: object) -> Spread | None:
    """Read a histogram of edges and counts (`counts` or `n`); None where they do not fit together."""
    edges = read_array(look_up(raw, "edges"))
    counts = read_array(look_up(raw, "counts"))
    counts = counts if len(counts) else read_array(look_up(raw, "n"))
    fits = (
        len(edges) == len(counts) + 1
        and len(counts) > 0
        and bool(np.isfinite(edges).all() and np.isfinite(counts).all())
    )
    if not fits or bool(np.any(np.diff(edges) < 0)) or np.abs(edges).max() >= DRAWABLE or not counts.any():
        return None
    return Spread(edges, counts)
