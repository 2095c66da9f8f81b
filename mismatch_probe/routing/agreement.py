"""How far two sides agree on the experts of every token, layer by layer.

Expert ids are compared as sorted rows, whole arrays at a time; a missing or sentinel route (an id below 0, or an id twice in
one row) is never counted as agreement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import InconclusiveError

IdArray = npt.NDArray[np.int16]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RouteComparison:
    """Two sides' routes, token by token.

    Attributes:
        flipped: bool [tokens, layers]; the *sets* of experts differ, or a route is missing.
        missing: bool [tokens, layers]; a route of either side is missing.
        overlap: int16 [tokens, layers]; experts that both sides chose.
        same_top1: bool [tokens, layers]; the first expert listed is the same. None where an engine does not list its
            experts in order of weight.
        top_k: Experts per token.
    """

    flipped: BoolArray
    missing: BoolArray
    overlap: IdArray
    same_top1: BoolArray
    top_k: int

    @property
    def num_tokens(self) -> int:
        """Tokens compared."""
        return int(self.flipped.shape[0])

    @property
    def num_layers(self) -> int:
        """MoE layers compared."""
        return int(self.flipped.shape[1])

    @property
    def flipped_layers(self) -> IntArray:
        """int64 [tokens]; in how many layers the sets differ."""
        count: IntArray = self.flipped.sum(axis=1, dtype=np.int64)
        return count

    @property
    def jaccard(self) -> FloatArray:
        """float64 [tokens, layers]; experts in common over experts in either; 0 where a route is missing."""
        return self.overlap / (2.0 * self.top_k - self.overlap)


def compare_routes(rollout: IdArray, train: IdArray) -> RouteComparison:
    """Compares the experts of two sides.

    Args:
        rollout: int [tokens, layers, top_k] expert ids.
        train: int [tokens, layers, top_k] expert ids of the same tokens.

    Raises:
        InconclusiveError: The shapes differ, or there is nothing to compare.
    """
    if rollout.shape != train.shape:
        raise InconclusiveError(
            f"routes of {rollout.shape} and {train.shape} (tokens, layers, experts) cannot be compared",
            hint="both sides must route the same tokens of one model",
        )
    if rollout.ndim != 3 or not rollout.size:
        raise InconclusiveError("there are no routes to compare")
    left, right = np.sort(rollout, axis=-1), np.sort(train, axis=-1)
    missing = (left[..., 0] < 0) | (right[..., 0] < 0) | _repeats(left) | _repeats(right)
    # An id of one side is in common if it stands anywhere in the other side's row; top_k passes over the whole array.
    overlap = np.zeros(missing.shape, dtype=np.int16)
    for slot in range(left.shape[-1]):
        overlap += (left == right[..., slot, None]).any(axis=-1)
    overlap[missing] = 0
    same = (left == right).all(axis=-1) & ~missing
    return RouteComparison(
        flipped=~same,
        missing=missing,
        overlap=overlap,
        same_top1=(rollout[..., 0] == train[..., 0]) & ~missing,
        top_k=int(rollout.shape[-1]),
    )


def _repeats(sorted_ids: IdArray) -> BoolArray:
    repeated: BoolArray = (sorted_ids[..., 1:] == sorted_ids[..., :-1]).any(axis=-1)
    return repeated


def flips_before(flipped_layers: IntArray, prompt_lengths: IntArray, response_lengths: IntArray) -> IntArray:
    """Flipped layers at the position whose logits gave each response token.

    The token at position i is predicted from position i - 1, so that is where its own routing matters.

    Args:
        flipped_layers: int64 [fed tokens], sequences one after the other, prompt + response - 1 tokens each.
        prompt_lengths: int64 [sequences].
        response_lengths: int64 [sequences].

    Returns:
        int64 [response tokens].
    """
    fed = prompt_lengths + response_lengths - 1
    starts = np.concatenate([[0], np.cumsum(fed)[:-1]]) + prompt_lengths - 1
    offsets = np.arange(response_lengths.sum()) - np.repeat(
        np.cumsum(response_lengths) - response_lengths, response_lengths
    )
    charged: IntArray = flipped_layers[np.repeat(starts, response_lengths) + offsets]
    return charged
