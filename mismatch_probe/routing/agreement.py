"""How far two sides agree on the experts of every token, layer by layer.

Ids are laid out slot by slot, so that comparing is a few passes over long rows of bytes and nothing loops over tokens. A
missing or sentinel route (an id below 0 or beyond the experts, such as 255 or 65535, or an id twice in one row) is neither
agreement nor a flip: it is counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import InconclusiveError

IdArray = npt.NDArray[np.integer]
ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
SlotArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

BLOCK_ROWS = 1 << 15
"""Rows (token, layer) compared at once: a block of both sides and what is made of it stay in a core's own cache."""


@dataclass(frozen=True, slots=True)
class RouteComparison:
    """Two sides' routes, token by token.

    Attributes:
        flipped: bool [tokens, layers]; both sets of experts are known and differ.
        missing: bool [tokens, layers]; the route of at least one side is not known.
        overlap: uint8 [tokens, layers]; experts that both sides chose, 0 where a route is missing.
        same_top1: bool [tokens, layers]; the first expert listed is the same. Says something only where both sides list
            their experts in order of weight.
        same_order: bool [tokens, layers]; the same experts in the same order.
        top_k: Experts per token.
    """

    flipped: BoolArray
    missing: BoolArray
    overlap: ByteArray
    same_top1: BoolArray
    same_order: BoolArray
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
    def agrees(self) -> BoolArray:
        """Where both sides are known to have chosen the same set, bool [tokens, layers]."""
        return ~(self.flipped | self.missing)

    @property
    def flipped_layers(self) -> IntArray:
        """int64 [tokens]; in how many layers the sets are known to differ."""
        count: IntArray = self.flipped.sum(axis=1, dtype=np.int64)
        return count

    @property
    def jaccard(self) -> FloatArray:
        """float64 [tokens, layers]; experts in common over experts in either; 0 where a route is missing."""
        return self.overlap / (2.0 * self.top_k - self.overlap)


def compare_routes(rollout: IdArray, train: IdArray, *, num_experts: int) -> RouteComparison:
    """Compares the experts of two sides.

    Args:
        rollout: int [tokens, layers, top_k] expert ids, any integer dtype.
        train: int [tokens, layers, top_k] expert ids of the same tokens.
        num_experts: Experts per layer; ids from there on are sentinels.

    Raises:
        InconclusiveError: The shapes differ, or there is nothing to compare.
    """
    check_routes(rollout, train)
    return RouteComparer(num_experts=num_experts, top_k=rollout.shape[2]).compare(rollout, train)


def check_routes(rollout: IdArray, train: IdArray) -> None:
    """Raises InconclusiveError unless both sides have the same tokens, layers and experts per token, and some."""
    if rollout.shape != train.shape:
        raise InconclusiveError(
            f"routes of {rollout.shape} and {train.shape} (tokens, layers, experts) cannot be compared",
            hint="both sides must route the same tokens of one model",
        )
    if rollout.ndim != 3 or not rollout.size:
        raise InconclusiveError("there are no routes to compare")


def missing_rows(ids: IdArray, num_experts: int) -> BoolArray | None:
    """Which rows hold an id that is no expert.

    Args:
        ids: int [..., top_k].
        num_experts: Experts per layer.

    Returns:
        bool [...], or None where every id is an expert: telling that takes one fast pass.
    """
    if ids.min() >= 0 and ids.max() < num_experts:
        return None
    wrong: BoolArray = np.asarray(((ids < 0) | (ids >= num_experts)).any(axis=-1))
    return wrong


def repeats(slots: SlotArray) -> BoolArray:
    """Which rows list an expert twice.

    Args:
        slots: unsigned [top_k, rows].

    Returns:
        bool [rows].
    """
    found = np.zeros(slots.shape[1], dtype=np.bool_)
    for slot in range(len(slots) - 1):
        found |= np.equal(slots[slot + 1 :], slots[slot]).any(axis=0)
    return found


class RouteComparer:
    """Compares routes in blocks, in buffers that are used again: fresh memory costs more than comparing.

    Args:
        num_experts: Experts per layer.
        top_k: Experts per token.
    """

    def __init__(self, *, num_experts: int, top_k: int) -> None:
        self._num_experts = num_experts
        # A byte each where it can hold every expert.
        dtype = np.uint8 if num_experts <= 1 << 8 else np.uint16
        self._slots = np.empty((2, top_k, BLOCK_ROWS), dtype=dtype)
        self._equal = np.empty((top_k, BLOCK_ROWS), dtype=np.bool_)
        self._hit = np.empty(BLOCK_ROWS, dtype=np.bool_)

    def compare(self, rollout: IdArray, train: IdArray) -> RouteComparison:
        """As `compare_routes`, for routes that `check_routes` has passed."""
        tokens, layers, top_k = rollout.shape
        rows = tokens * layers
        left, right = rollout.reshape(rows, top_k), train.reshape(rows, top_k)
        flags = np.empty((3, rows), dtype=np.bool_)
        missing = np.zeros(rows, dtype=np.bool_)
        overlap = np.empty(rows, dtype=np.uint8)
        for begin in range(0, rows, BLOCK_ROWS):
            span = slice(begin, min(begin + BLOCK_ROWS, rows))
            self._compare_block(left[span], right[span], flags[:, span], missing[span], overlap[span])
        shape = (tokens, layers)
        flipped, same_top1, same_order = (flag.reshape(shape) for flag in flags)
        return RouteComparison(
            flipped, missing.reshape(shape), overlap.reshape(shape), same_top1, same_order, top_k
        )

    def _compare_block(
        self, left: IdArray, right: IdArray, flags: BoolArray, missing: BoolArray, overlap: ByteArray
    ) -> None:
        """Compares rows [rows, top_k] into flags [3, rows] (flipped, same top-1, same order), missing and overlap."""
        rows, top_k = left.shape
        slots, equal, hit = self._slots[:, :, :rows], self._equal[:, :rows], self._hit[:rows]
        for ids, laid_out in zip((left, right), slots, strict=True):
            np.copyto(laid_out, ids.T, casting="unsafe")
            if (wrong := missing_rows(ids, self._num_experts)) is not None:
                missing |= wrong
        one, other = slots
        flipped, same_top1, same_order = flags
        np.equal(one, other, out=equal)
        np.logical_and.reduce(equal, axis=0, out=same_order)
        same_top1[...] = equal[0]
        overlap[...] = 0
        for slot in range(top_k):
            np.equal(other, one[slot], out=equal)
            np.logical_or.reduce(equal, axis=0, out=hit)
            np.add(overlap, hit.view(np.uint8), out=overlap)
        # With distinct ids on the left, top_k of them found on the right leave no room for a repeat there; so only where
        # the sets differ has the right side to be looked at.
        missing |= repeats(one)
        np.not_equal(overlap, top_k, out=flipped)
        differ = np.flatnonzero(flipped)
        missing[differ] |= repeats(np.take(other, differ, axis=1))
        if missing.any():
            overlap[missing] = 0
            flags[:, missing] = False
