"""Do the two sides speak of the same tokens? MP105, MP110."""

from __future__ import annotations

import numpy as np

from mismatch_probe.stats.layout import FloatArray, IntArray, SequenceLayout
from mismatch_probe.stats.validity.check import Check, not_run

SHIFTS = (-2, -1, 0, 1, 2)
CAP = 3.0
SHIFT_BAR = 0.5
SHIFT_SEQUENCE_BAR = 0.25
MIN_SHIFT_TOKENS = 32
MIN_SHIFT_LENGTH = 24
MIN_ROW_LENGTH = 8
SWAP_BAR = 0.25
SUSPICIOUS = 0.1
MAX_SUSPECTS = 256


def shift_distances(
    train_logprobs: FloatArray, rollout_logprobs: FloatArray, layout: SequenceLayout
) -> tuple[FloatArray, IntArray]:
    """Distance between the sides for each shift, sequence by sequence.

    Only tokens whose five neighbours exist are compared, the same ones for every shift, so that an outlier at
    an edge does not favour a shift. Distances are capped at 3 nats a token.

    Args:
        train_logprobs: float64 [tokens], nats.
        rollout_logprobs: float64 [tokens], nats.
        layout: Their sequences.

    Returns:
        float64 [sequences, 5], summed min(|train_t - rollout_(t+s)|, 3) for s = -2 .. 2, and the number of
        tokens compared, int64 [sequences].
    """
    reach = max(SHIFTS)
    inner = (layout.token_position >= reach) & (
        layout.token_position < np.repeat(layout.lengths, layout.lengths) - reach
    )
    centre = np.flatnonzero(inner)
    owner = layout.token_sequence[centre]
    size = layout.num_sequences
    sums = [
        np.bincount(
            owner,
            weights=np.minimum(np.abs(train_logprobs[centre] - rollout_logprobs[centre + shift]), CAP),
            minlength=size,
        )
        for shift in SHIFTS
    ]
    return np.column_stack(sums), np.bincount(owner, minlength=size)


def check_shift(train_logprobs: FloatArray, rollout_logprobs: FloatArray, layout: SequenceLayout) -> Check:
    """MP105: the sides are not shifted against each other by one or two tokens.

    Fails where another shift of all sequences halves the distance, or where single sequences of 24 tokens or
    more fit four times better shifted. `observed` is the best shifted distance over the unshifted.
    """
    name = "no token shift"
    distances, counts = shift_distances(train_logprobs, rollout_logprobs, layout)
    compared = int(counts.sum())
    if compared < MIN_SHIFT_TOKENS:
        return not_run(
            "MP105", name, f"{compared} tokens with two neighbours on each side; {MIN_SHIFT_TOKENS} needed"
        )
    here = SHIFTS.index(0)
    shifted = np.delete(distances, here, axis=1)
    totals, at_zero = shifted.sum(axis=0), float(distances[:, here].sum())
    if at_zero == 0.0:
        return Check("MP105", name, "pass", None, SHIFT_BAR, "the sides are equal as they stand")
    best = int(np.argmin(totals))
    names = [shift for shift in SHIFTS if shift != 0]
    ratio = float(totals[best]) / at_zero
    long = counts >= MIN_SHIFT_LENGTH - 2 * max(SHIFTS)
    single = long & (shifted.min(axis=1) < SHIFT_SEQUENCE_BAR * distances[:, here])
    num_single = int(np.count_nonzero(single))
    failed = ratio < SHIFT_BAR or num_single > 0
    detail = (
        f"shifting by {names[best]:+d} changes the distance of the sides {ratio:.2g} times;"
        f" {num_single} of {int(np.count_nonzero(long))} long sequences fit better shifted"
    )
    return Check("MP105", name, "fail" if failed else "pass", ratio, SHIFT_BAR, detail)


def check_rows(train_logprobs: FloatArray, rollout_logprobs: FloatArray, layout: SequenceLayout) -> Check:
    """MP110: no sequence carries another one's numbers.

    Two findings: rows that are the same bit for bit on one side but differ on the other by over 0.1 nats a
    token (a duplicated row), and rows whose training side fits another row's rollout side of the same length
    four times better than its own (swapped rows). Sequences of fewer than 8 tokens are not looked at. Of rows
    that differ by over 0.1 nats the 256 worst are tried. `observed` counts the sequences concerned.
    """
    name = "rows not duplicated or swapped"
    starts, lengths = layout.offsets[:-1], layout.lengths
    rows = np.flatnonzero(lengths >= MIN_ROW_LENGTH)
    if rows.size < 2:
        return not_run("MP110", name, f"fewer than 2 sequences of {MIN_ROW_LENGTH} tokens")

    def row(side: FloatArray, index: int) -> FloatArray:
        return side[starts[index] : starts[index] + lengths[index]]

    def distance(one: int, other: int) -> float:
        gap = np.abs(row(train_logprobs, one) - row(rollout_logprobs, other))
        return float(np.minimum(gap, CAP).mean())

    duplicated: set[int] = set()
    for side, other in ((train_logprobs, rollout_logprobs), (rollout_logprobs, train_logprobs)):
        seen: dict[bytes, int] = {}
        for index in (int(i) for i in rows):
            first = seen.setdefault(row(side, index).tobytes(), index)
            gap = (
                np.minimum(np.abs(row(other, first) - row(other, index)), CAP)
                if first != index
                else np.zeros(1)
            )
            if float(gap.mean()) > SUSPICIOUS:
                duplicated |= {first, index}
    own = np.array([distance(int(i), int(i)) for i in rows])
    suspects = [int(i) for i in np.argsort(-own) if own[i] > SUSPICIOUS][:MAX_SUSPECTS]
    swapped: set[int] = set()
    for place in suspects:
        peers = rows[(lengths[rows] == lengths[rows[place]]) & (rows != rows[place])]
        if any(distance(int(rows[place]), int(peer)) < SWAP_BAR * own[place] for peer in peers):
            swapped.add(int(rows[place]))
    concerned = sorted(duplicated | swapped)
    detail = f"{len(duplicated)} duplicated and {len(swapped)} swapped of {rows.size} sequences"
    if concerned:
        detail += f": {', '.join(str(i) for i in concerned[:8])}{' ...' if len(concerned) > 8 else ''}"
    return Check("MP110", name, "fail" if concerned else "pass", float(len(concerned)), 0.0, detail)
