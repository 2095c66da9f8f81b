"""How many tokens each expert serves on either side, and how far the two loads are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import InconclusiveError
from mismatch_probe.routing.agreement import BLOCK_ROWS, BoolArray, FloatArray, IdArray, IntArray


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """Load of one layer's experts.

    Attributes:
        rollout: int64 [experts]; tokens sent to each expert.
        train: int64 [experts].
        total_variation: Half the sum of |rollout share - train share| over experts; 0 same load, 1 disjoint.
        rollout_imbalance: Largest share times the number of experts; 1 is even.
        train_imbalance: As `rollout_imbalance`.
    """

    rollout: IntArray
    train: IntArray
    total_variation: float
    rollout_imbalance: float
    train_imbalance: float


class ExpertCounter:
    """Counts the tokens of every expert on both sides, in buffers that are used again.

    Args:
        num_layers: MoE layers.
        num_experts: Experts per layer.
        top_k: Experts per token.
    """

    def __init__(self, *, num_layers: int, num_experts: int, top_k: int) -> None:
        self._shape = (num_layers, num_experts)
        self._top_k = top_k
        # Where each layer's counts begin, once a slot of a token; the last bin of a layer takes what is left out.
        self._begin = np.arange(num_layers, dtype=np.int64) * (num_experts + 1)
        self._place = np.empty((BLOCK_ROWS, top_k), dtype=np.int64)

    def count(
        self, rollout: IdArray, train: IdArray, *, flipped: BoolArray, missing: BoolArray
    ) -> npt.NDArray[np.int64]:
        """Tokens sent to each expert of each layer.

        Where the sets agree, one side's count is the other's, so the second side is looked at where they do not.

        Args:
            rollout: int [tokens, layers, top_k]; every id is an expert but for rows in `missing`.
            train: int [tokens, layers, top_k].
            flipped: bool [tokens, layers]; where the sets differ.
            missing: bool [tokens, layers]; left out on both sides.

        Returns:
            int64 [2, layers, experts].
        """
        layers, num_experts = self._shape
        counts = np.zeros((2, layers * (num_experts + 1)), dtype=np.int64)
        step = max(1, BLOCK_ROWS // layers)
        begin = np.tile(self._begin, step)
        for start in range(0, len(rollout), step):
            span = slice(start, start + step)
            left, right = (side[span].reshape(-1, self._top_k) for side in (rollout, train))
            here = self._place[: len(left)]
            np.copyto(here, left)
            if missing[span].any():
                here[missing[span].reshape(-1)] = num_experts
            here += begin[: len(left), None]
            both = np.bincount(here.reshape(-1), minlength=counts.shape[1])
            counts += both
            rows = np.flatnonzero(flipped[span])
            layer = begin[rows, None]
            for side, sign in ((left, -1), (right, 1)):
                moved = self._place[: rows.size]
                np.copyto(moved, side[rows])
                moved += layer
                counts[1] += sign * np.bincount(moved.reshape(-1), minlength=counts.shape[1])
        return counts.reshape(2, layers, num_experts + 1)[:, :, :num_experts]


def load_of(rollout: IntArray, train: IntArray) -> LayerLoad:
    """Compares the load of one layer.

    Args:
        rollout: int64 [experts].
        train: int64 [experts].

    Raises:
        InconclusiveError: No token reached an expert.
    """
    if not rollout.sum() or not train.sum():
        raise InconclusiveError("no token of this layer has a known route on both sides")
    shares: list[FloatArray] = [side / side.sum() for side in (rollout, train)]
    return LayerLoad(
        rollout,
        train,
        float(0.5 * np.abs(shares[0] - shares[1]).sum()),
        *(float(share.max() * share.size) for share in shares),
    )
