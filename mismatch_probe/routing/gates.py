"""Gate weights and router margins: how far the mixing differs where ids agree, and how close flipped experts were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.routing.agreement import BoolArray, FloatArray, IdArray, IntArray, RouteComparison

RealArray = npt.NDArray[np.floating]

MARGIN_EDGES: FloatArray = np.concatenate([[0.0], 2.0 ** np.arange(-10, 4), [np.inf]])
"""Edges of the margin histogram, in the router's own units (logits; scores for sigmoid routers)."""

_BLOCK_ROWS = 1 << 15


def gate_distance(
    rollout: IdArray, rollout_gates: RealArray, train: IdArray, train_gates: RealArray
) -> FloatArray:
    """Half the sum over experts of |rollout's gate weight - train's|; an expert not chosen has weight 0.

    Where gate weights add up to 1 this is the total variation of the two mixtures.

    Args:
        rollout: int [rows, top_k], distinct ids in each row.
        rollout_gates: float [rows, top_k].
        train: int [rows, top_k].
        train_gates: float [rows, top_k].

    Returns:
        float64 [rows].
    """
    left, right = rollout_gates.astype(np.float64), train_gates.astype(np.float64)
    distance = np.zeros(len(rollout))
    unmatched = np.abs(right).sum(axis=1)
    for slot in range(rollout.shape[1]):
        same = train == rollout[:, slot, None]
        theirs = np.where(same, right, 0.0).sum(axis=1)
        distance += np.abs(left[:, slot] - theirs)
        unmatched -= np.abs(theirs)
    # What is left of the other side belongs to experts that this side did not choose.
    half: FloatArray = 0.5 * (distance + np.maximum(unmatched, 0.0))
    return half


class GateSums:
    """Gate-weight distance by layer, for rows with the same experts and for flipped ones.

    Args:
        num_layers: MoE layers.
    """

    def __init__(self, num_layers: int) -> None:
        # Rows and sums of distances; where the sets agree, where they differ.
        self.sums = np.zeros((2, 2, num_layers), dtype=np.float64)

    def update(
        self,
        rollout: IdArray,
        rollout_gates: RealArray,
        train: IdArray,
        train_gates: RealArray,
        compared: RouteComparison,
    ) -> None:
        """Adds tokens; rows with a missing route or a weight that is not finite are left out.

        Args:
            rollout: int [tokens, layers, top_k].
            rollout_gates: float [tokens, layers, top_k].
            train: int [tokens, layers, top_k].
            train_gates: float [tokens, layers, top_k].
            compared: Of the same tokens.

        Raises:
            ConfigError: Weights of another shape than ids.
        """
        if rollout_gates.shape != rollout.shape or train_gates.shape != train.shape:
            raise ConfigError(
                f"gate weights of {rollout_gates.shape} and {train_gates.shape} for {train.shape}"
            )
        rows = np.flatnonzero(~compared.missing)
        layers, top_k = compared.num_layers, compared.top_k
        ids = [side.reshape(-1, top_k) for side in (rollout, train)]
        gates = [side.reshape(-1, top_k) for side in (rollout_gates, train_gates)]
        flipped = compared.flipped.reshape(-1)
        for begin in range(0, rows.size, _BLOCK_ROWS):
            here = rows[begin : begin + _BLOCK_ROWS]
            distance = gate_distance(ids[0][here], gates[0][here], ids[1][here], gates[1][here])
            finite = np.isfinite(distance)
            self._add(here[finite] % layers, flipped[here[finite]], distance[finite])

    def merge(self, other: Self) -> None:
        """Adds other tokens."""
        self.sums += other.sums

    def means(self, layer: int) -> tuple[float | None, float | None]:
        """Mean distance of a layer where the sets agree and where they differ; None where no row is known."""
        same, flipped = (float(total / count) if count else None for count, total in self.sums[:, :, layer])
        return same, flipped

    def _add(self, layer: IntArray, flipped: BoolArray, distance: FloatArray) -> None:
        for kind, chosen in enumerate((~flipped, flipped)):
            width = self.sums.shape[2]
            self.sums[kind, 0] += np.bincount(layer[chosen], minlength=width)
            self.sums[kind, 1] += np.bincount(layer[chosen], weights=distance[chosen], minlength=width)


@dataclass(frozen=True, slots=True)
class MarginBin:
    """Router decisions whose margin lies in [low, high).

    Attributes:
        low: Lower edge.
        high: Upper edge; infinite for the last bin.
        n: Decisions (token, layer).
        flipped: How many of them flipped.
    """

    low: float
    high: float
    n: int
    flipped: int


class MarginSums:
    """How close the training router's last chosen expert was to the first left out, by whether the set flipped.

    Args:
        num_layers: MoE layers.
    """

    def __init__(self, num_layers: int) -> None:
        # Unflipped, flipped; decisions and sums by layer; decisions by bin.
        self.sums = np.zeros((2, 2, num_layers), dtype=np.float64)
        self.bins = np.zeros((2, MARGIN_EDGES.size - 1), dtype=np.int64)

    def update(self, margins: RealArray, compared: RouteComparison) -> None:
        """Adds tokens; margins that are not finite (every expert is chosen) and missing routes are left out.

        Args:
            margins: float [tokens, layers], at least 0.
            compared: Of the same tokens.

        Raises:
            ConfigError: Margins of another shape.
            InconclusiveError: A margin below 0: the chosen experts are not the router's own.
        """
        if margins.shape != compared.flipped.shape:
            raise ConfigError(f"margins of {margins.shape} for routes of {compared.flipped.shape}")
        known = np.isfinite(margins) & ~compared.missing
        if (margins[known] < 0).any():
            raise InconclusiveError(
                "router margins below 0: the experts recorded are not those the router chose"
            )
        for kind, chosen in enumerate((known & ~compared.flipped, known & compared.flipped)):
            self.sums[kind, 0] += chosen.sum(axis=0)
            self.sums[kind, 1] += np.where(chosen, margins, 0.0).sum(axis=0, dtype=np.float64)
            place = np.searchsorted(MARGIN_EDGES, margins[chosen].astype(np.float64), side="right") - 1
            self.bins[kind] += np.bincount(place, minlength=self.bins.shape[1])

    def merge(self, other: Self) -> None:
        """Adds other tokens."""
        self.sums += other.sums
        self.bins += other.bins

    def means(self, layer: int) -> tuple[float | None, float | None]:
        """Mean margin of a layer's unflipped and of its flipped decisions; None where there are none."""
        same, flipped = (float(total / count) if count else None for count, total in self.sums[:, :, layer])
        return same, flipped

    def histogram(self) -> tuple[MarginBin, ...]:
        """Decisions and flips by margin, bins without a decision left out."""
        return tuple(
            MarginBin(float(low), float(high), int(same + flipped), int(flipped))
            for low, high, same, flipped in zip(MARGIN_EDGES, MARGIN_EDGES[1:], *self.bins, strict=False)
            if same + flipped
        )
