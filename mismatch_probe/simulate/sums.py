"""What corrections come to within each sequence: all that masses, effective sizes and their intervals are made of.

Weights are worked out over a bounded number of tokens at a time, whole sequences together, so that memory does
not grow with the run. A method that decides over a whole batch (M2PO) then takes each such piece for its batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, MismatchProbeError
from mismatch_probe.simulate.responses import Responses

if TYPE_CHECKING:
    from mismatch_probe.weights import Batch, WeightMethod

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

EMPTY = 1e-12
MAX_TOKENS = 2_000_000
TOKEN_BINS = 24
_OWN = "mismatch_probe."


@dataclass(frozen=True, slots=True, eq=False)
class SequenceSums:
    """Sums over the tokens of each sequence that has any, float64 [sequences].

    Attributes:
        weight: Of phi.
        size: Of |phi|.
        squares: Of (phi / scale)^2; squares of saturated weights would overflow.
        largest: The largest |phi|.
        kept: Tokens with phi above the method's `kept_above`.
        empty: Tokens with |phi| of at most 1e-12.
        scale: The largest |phi| of all, or 1 where all are 0.
        binned: float64 [2, bins]: phi of the tokens with A > 0 and with A < 0, summed in the bins of
            `Ground.token_edges`.
    """

    weight: FloatArray
    size: FloatArray
    squares: FloatArray
    largest: FloatArray
    kept: FloatArray
    empty: FloatArray
    scale: float
    binned: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """What all corrections share on one set of responses; sequences without a token are left out.

    Attributes:
        lengths: Tokens that count, float64 [sequences].
        log_weight: log W = sum of log pi - log mu, nats, float64 [sequences].
        advantages: float64 [sequences].
        clusters: Prompt of each, int64 [sequences].
        prompts: How many prompts there are.
        assumed: Whether every sequence is there twice, once for either sign.
        token_edges: Edges of bins of the tokens' log-ratios, nats, float64 [bins + 1].
        token_counts: float64 [2, bins]: tokens with A > 0 and with A < 0.
        token_total: float64 [bins]: tokens of any A.
    """

    lengths: FloatArray
    log_weight: FloatArray
    advantages: FloatArray
    clusters: IntArray
    prompts: int
    assumed: bool
    token_edges: FloatArray
    token_counts: FloatArray
    token_total: FloatArray


def ground_of(responses: Responses) -> Ground:
    """Lengths, weights and bins of some responses."""
    lengths = responses.lengths()
    counted = lengths > 0
    log_ratio = (responses.train - responses.rollout)[responses.mask]
    edges = _edges(log_ratio)
    place = _places(log_ratio, edges)
    sign = np.repeat(np.sign(responses.advantages), np.diff(responses.offsets))[responses.mask]
    bins = len(edges) - 1
    return Ground(
        lengths=lengths[counted],
        log_weight=responses.log_weight()[counted],
        advantages=responses.advantages[counted],
        clusters=responses.clusters[counted],
        prompts=responses.num_prompts,
        assumed=responses.assumed,
        token_edges=edges,
        token_counts=np.stack([_histogram(place[sign == one], bins) for one in (1.0, -1.0)]),
        token_total=_histogram(place, bins),
    )


def sum_weights(
    methods: Mapping[str, WeightMethod], responses: Responses, ground: Ground, *, max_tokens: int = MAX_TOKENS
) -> dict[str, SequenceSums | MismatchProbeError]:
    """Sums of several corrections over the same responses.

    Args:
        methods: The corrections by the key that their sums are to have.
        responses: The responses.
        ground: `ground_of(responses)`.
        max_tokens: Tokens worked on at a time; a longer sequence goes alone.

    Returns:
        By key; in place of the sums the error of a method that cannot be had on these
        responses. Errors of our own code that are not `MismatchProbeError` are raised.
    """
    made: dict[str, list[_Piece]] = {key: [] for key in methods}
    failed: dict[str, MismatchProbeError] = {}
    for piece, batch in responses.pieces(max_tokens):
        view = _View.of(piece, ground.token_edges)
        for key, method in methods.items():
            if key in failed:
                continue
            try:
                made[key].append(view.sums(_coefficients(method, batch), method.kept_above))
            except MismatchProbeError as error:
                failed[key] = error
    return {key: failed[key] if key in failed else _join(made[key]) for key in methods}


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """`SequenceSums` of some sequences; squares are relative to each sequence's largest."""

    weight: FloatArray
    size: FloatArray
    squares: FloatArray
    largest: FloatArray
    kept: FloatArray
    empty: FloatArray
    binned: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """The layout of one piece, shared by all methods.

    Attributes:
        mask: bool [tokens].
        starts: First token of each sequence that has tokens.
        counts: Tokens of each of these.
        counted: Which of these have a token that counts.
        bins: By sign of A: the tokens that count, and the bin of each.
        num_bins: How many bins there are.
    """

    mask: npt.NDArray[np.bool_]
    starts: IntArray
    counts: IntArray
    counted: npt.NDArray[np.bool_]
    bins: tuple[tuple[IntArray, IntArray], ...]
    num_bins: int

    @classmethod
    def of(cls, piece: Responses, edges: FloatArray) -> _View:
        sizes = np.diff(piece.offsets)
        starts = piece.offsets[:-1][sizes > 0]
        sign = np.repeat(np.sign(piece.advantages), sizes)
        log_ratio = np.where(piece.mask, piece.train - piece.rollout, 0.0)
        bins = []
        for one in (1.0, -1.0):
            chosen = np.flatnonzero(piece.mask & (sign == one))
            bins.append((chosen, _places(log_ratio[chosen], edges)))
        counted = np.add.reduceat(piece.mask.astype(np.int64), starts) > 0
        return cls(piece.mask, starts, sizes[sizes > 0], counted, tuple(bins), len(edges) - 1)

    def sums(self, phi: FloatArray, kept_above: float) -> _Piece:
        absolute = np.abs(phi)
        largest = np.maximum.reduceat(absolute, self.starts)
        relative = absolute / np.repeat(np.where(largest > 0, largest, 1.0), self.counts)
        return _Piece(
            weight=self._total(phi),
            size=self._total(absolute),
            squares=self._total(np.square(relative)),
            largest=largest[self.counted],
            kept=self._total((phi > kept_above) & self.mask),
            empty=self._total((absolute <= EMPTY) & self.mask),
            binned=np.stack([np.bincount(place, phi[chosen], self.num_bins) for chosen, place in self.bins]),
        )

    def _total(self, values: npt.NDArray[Any]) -> FloatArray:
        """Sums over the tokens of each sequence that counts."""
        return np.add.reduceat(values.astype(np.float64), self.starts)[self.counted]


def _coefficients(method: WeightMethod, batch: Batch) -> FloatArray:
    """Phi of every token; whatever goes wrong in a third party's method says so."""
    if type(method).__module__.startswith(_OWN):
        phi = method.coefficients(batch)
    else:
        try:
            phi = method.coefficients(batch)
        except MismatchProbeError:
            raise
        except Exception as error:
            raise ConfigError(f"{method.name} failed: {type(error).__name__}: {error}") from error
    values = np.asarray(phi.numpy(), dtype=np.float64)
    if values.shape != tuple(batch.train_logprobs.shape) or not np.all(np.isfinite(values)):
        raise ConfigError(f"{method.name} gave weights that are not one finite number a token")
    return values


def _join(pieces: list[_Piece]) -> SequenceSums:
    def column(name: str) -> FloatArray:
        return np.concatenate([getattr(piece, name) for piece in pieces])

    largest = column("largest")
    scale = float(largest.max()) if largest.size and largest.max() > 0 else 1.0
    return SequenceSums(
        weight=column("weight"),
        size=column("size"),
        squares=column("squares") * np.square(largest / scale),
        largest=largest,
        kept=column("kept"),
        empty=column("empty"),
        scale=scale,
        binned=np.sum([piece.binned for piece in pieces], axis=0),
    )


def _edges(values: FloatArray) -> FloatArray:
    """Bins of equal width over all but one in a thousand at either end, which count to the outermost bins."""
    low, high = (float(bound) for bound in np.quantile(values, [0.001, 0.999]))
    if not high > low:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, TOKEN_BINS + 1)


def _places(values: FloatArray, edges: FloatArray) -> IntArray:
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2).astype(np.int64)


def _histogram(place: IntArray, bins: int) -> FloatArray:
    return np.bincount(place, minlength=bins).astype(np.float64)
