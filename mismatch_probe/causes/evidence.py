"""What the tokens of a run say about causes: pure functions on the legs' log-probabilities and the ids behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mismatch_probe.causes.log_odds import LogOddsTrend, OneSidedRounding, log_odds_trend, one_sided_rounding
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.layout import SequenceLayout
from mismatch_probe.stats.validity import usable_tokens
from mismatch_probe.stats.validity.identity import unrelated_distance

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
TokenRows = Sequence[Sequence[int] | npt.NDArray[np.int32]]

CAP = 3.0
MIN_LENGTH = 8
HEAD_TOKENS = 3
UNRELATED = 0.5
AT_FLOOR = 0.05


@dataclass(frozen=True)
class Readings:
    """One run as flat arrays.

    Attributes:
        rollout: float64 [tokens] leg rollout/decode, nats.
        train: float64 [tokens] leg train/forward, nats.
        offsets: int64 [sequences + 1].
        clusters: int64 [sequences] prompt of each sequence.
        response_tokens: int [tokens] ids that were sampled.
        prompts: Ids of each sequence's prompt on the rollout side.
        legs: Other legs by name, float64 [tokens].
        train_prompts: Prompt ids that the training side read, where it recorded its own; None where it was fed the
            rollout's.
        train_responses: int [tokens] response ids that the training side read; None as above.
    """

    rollout: FloatArray
    train: FloatArray
    offsets: IntArray
    clusters: IntArray
    response_tokens: npt.NDArray[np.int32]
    prompts: TokenRows
    legs: Mapping[str, FloatArray] = field(default_factory=dict)
    train_prompts: TokenRows | None = None
    train_responses: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True)
class LegDistance:
    """How far two legs are apart.

    Attributes:
        k3: Mean of exp(l) - 1 - l, nats.
        mean_abs: Mean |l|, nats; hardly moved by single tokens, unlike K3.
    """

    k3: float
    mean_abs: float


@dataclass(frozen=True, slots=True)
class SequenceOutliers:
    """How the drift is spread over sequences of 8 tokens or more.

    Attributes:
        num_sequences: Those sequences.
        largest: Largest median |log_ratio| of a sequence, nats.
        second: The second largest, nats.
        sequence: Index of the sequence with the largest.
        num_unrelated: Sequences whose distance is over half that of unrelated tokens.
        num_late: Of these, sequences whose first 3 tokens agree within 0.05 nats: they part at some place.
        num_agreeing: Sequences with nine tenths of their |log_ratio| below 0.05 nats.
    """

    num_sequences: int
    largest: float
    second: float
    sequence: int
    num_unrelated: int
    num_late: int
    num_agreeing: int


@dataclass(frozen=True, slots=True)
class IdComparison:
    """Token ids as both sides read them.

    Attributes:
        num_sequences: Sequences compared.
        prompts_differ: Sequences whose prompt ids differ.
        first_token_missing: Of these, sequences where one side's prompt is the other's without its first token.
        responses_differ: Sequences whose response ids differ.
    """

    num_sequences: int
    prompts_differ: int
    first_token_missing: int
    responses_differ: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a diagnosis reads of the tokens.

    Attributes:
        num_tokens: Tokens used.
        num_unusable: Tokens left out: NaN, infinite or sentinel on a side.
        total: rollout/decode to train/forward.
        legs: By name of the other leg. For train/repeat and train/reference the distance from train/forward; for
            train/replay and rollout/prefill the distance from rollout/decode.
        log_odds: Slope of the log-odds' displacement, and what tokens seen before add; None with too few tokens.
        rounding: Whether displacements look like one side's head rounded to BF16; None where they do not vary.
        sequences: Spread over sequences; None where no two are long enough.
        ids: None where both sides read the same arrays.
    """

    num_tokens: int
    num_unusable: int
    total: LegDistance
    legs: dict[str, LegDistance]
    log_odds: LogOddsTrend | None
    rounding: OneSidedRounding | None
    sequences: SequenceOutliers | None
    ids: IdComparison | None


_FROM_TRAIN = ("train/repeat", "train/reference")
_FROM_ROLLOUT = ("train/replay", "rollout/prefill")


def gather_evidence(readings: Readings) -> Evidence:
    """Reads everything there is to read.

    Tokens that are no log-probabilities on either side are left out of every number.

    Args:
        readings: The run.
    """
    usable = usable_tokens(readings.train, readings.rollout)
    layout = SequenceLayout.from_arrays(readings.offsets, readings.clusters, num_tokens=readings.rollout.size)
    kept = np.bincount(layout.token_sequence[usable], minlength=layout.num_sequences)
    layout = SequenceLayout.from_arrays(np.concatenate([[0], np.cumsum(kept)]), layout.clusters)
    train, rollout = readings.train[usable], readings.rollout[usable]
    seen = seen_before(readings.response_tokens, readings.offsets, readings.prompts)[usable]
    legs = {}
    for name, values in readings.legs.items():
        if name in _FROM_TRAIN + _FROM_ROLLOUT:
            start = train if name in _FROM_TRAIN else rollout
            legs[name] = leg_distance(values[usable] - start)
    return Evidence(
        num_tokens=int(usable.sum()),
        num_unusable=int(usable.size - usable.sum()),
        total=leg_distance(train - rollout),
        legs=legs,
        log_odds=log_odds_trend(train, rollout, seen, layout),
        rounding=one_sided_rounding(train, rollout),
        sequences=sequence_outliers(train, rollout, layout),
        ids=compare_ids(readings),
    )


def leg_distance(log_ratio: FloatArray) -> LegDistance:
    """K3 and mean |l| of float64 [tokens]; not-a-number where a leg is not finite."""
    finite = log_ratio[np.isfinite(log_ratio)]
    if not finite.size:
        return LegDistance(float("nan"), float("nan"))
    return LegDistance(float(token_k3(finite).mean()), float(np.abs(finite).mean()))


def seen_before(
    tokens: npt.NDArray[np.int32], offsets: IntArray, prompts: TokenRows
) -> npt.NDArray[np.bool_]:
    """Whether each response token stands earlier in its own prompt or response, bool [tokens]."""
    seen = np.ones(tokens.size, dtype=np.bool_)
    for index, prompt in enumerate(prompts):
        start, stop = int(offsets[index]), int(offsets[index + 1])
        row = tokens[start:stop]
        first = np.unique(row, return_index=True)[1]
        seen[start + first] = np.isin(row[first], np.asarray(prompt, dtype=row.dtype))
    return seen


def sequence_outliers(
    train: FloatArray, rollout: FloatArray, layout: SequenceLayout
) -> SequenceOutliers | None:
    """Spread of the drift over sequences of 8 tokens or more; None with fewer than two."""
    rows = np.flatnonzero(layout.lengths >= MIN_LENGTH)
    if rows.size < 2:
        return None
    gap = np.abs(train - rollout)
    medians = np.empty(rows.size)
    unrelated = late = agreeing = 0
    for place, row in enumerate(rows):
        part = slice(int(layout.offsets[row]), int(layout.offsets[row + 1]))
        medians[place], most = np.quantile(gap[part], (0.5, 0.9))
        agreeing += bool(most < AT_FLOOR)
        distance = float(np.minimum(gap[part], CAP).mean())
        if distance > 2 * AT_FLOOR and distance > UNRELATED * unrelated_distance(train[part], rollout[part]):
            unrelated += 1
            late += bool(gap[part][:HEAD_TOKENS].max() < AT_FLOOR)
    order = np.argsort(medians)
    return SequenceOutliers(
        num_sequences=int(rows.size),
        largest=float(medians[order[-1]]),
        second=float(medians[order[-2]]),
        sequence=int(rows[order[-1]]),
        num_unrelated=unrelated,
        num_late=late,
        num_agreeing=agreeing,
    )


def compare_ids(readings: Readings) -> IdComparison | None:
    """Compares the ids of both sides, where the training side recorded its own."""
    if readings.train_prompts is None and readings.train_responses is None:
        return None
    size = len(readings.prompts)
    missing = differ = 0
    for rollout, train in zip(readings.prompts, readings.train_prompts or readings.prompts, strict=True):
        one, other = list(rollout), list(train)
        differ += one != other
        missing += one != other and (one[1:] == other or other[1:] == one)
    changed = 0
    if readings.train_responses is not None:
        wrong = readings.train_responses != readings.response_tokens
        layout = SequenceLayout.from_arrays(readings.offsets, readings.clusters)
        changed = int(np.unique(layout.token_sequence[wrong]).size)
    return IdComparison(size, differ, missing, changed)
