"""Are these tokens the ones that were sampled? Other ids, padding, a misplaced mask: MP101 and MP102."""

from __future__ import annotations

import numpy as np

from mismatch_probe.stats.layout import FloatArray, IntArray, SequenceLayout
from mismatch_probe.stats.validity.alignment import CAP
from mismatch_probe.stats.validity.check import Check, not_run

MIN_LENGTH = 24
TAIL_LENGTH = 16
UNRELATED = 0.7
CERTAINLY_UNRELATED = 0.9
IMPOSSIBLE = -8.0
MIN_RUN = 3
EDGE_GAP = 0.1
EDGE_OUTLIER = 1.0
EDGE_FACTOR = 10.0
EDGE_SHARE = 0.25
MIN_EDGE_SEQUENCES = 8


def unrelated_distance(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> float:
    """How far the sides would be if they had nothing to do with each other.

    Mean of min(|train_i - rollout_j|, 3) over all pairs i, j, from sorted arrays in n log n.

    Args:
        train_logprobs: float64 [n], nats.
        rollout_logprobs: float64 [m], nats.
    """
    train, rollout = np.sort(train_logprobs), np.sort(rollout_logprobs)
    cumulated = np.concatenate([[0.0], np.cumsum(rollout)])
    low, at, high = (np.searchsorted(rollout, train + shift) for shift in (-CAP, 0.0, CAP))
    below = train * (at - low) - (cumulated[at] - cumulated[low])
    above = (cumulated[high] - cumulated[at]) - train * (high - at)
    capped = CAP * (rollout.size - (high - low))
    return float((below + above + capped).sum()) / (train.size * rollout.size)


def check_same_tokens(
    train_logprobs: FloatArray, rollout_logprobs: FloatArray, layout: SequenceLayout
) -> Check:
    """MP101 from log-probabilities alone: both sides scored the ids that were sampled.

    Where a side scored other ids (decoded and encoded again, another response, a wrong prompt in between),
    its log-probabilities are as far from the other side's as those of unrelated tokens. Looks at sequences of
    24 tokens or more, whole and at their last 16 tokens (ids that diverge stay diverged). Fails where a
    sequence is at 90 % of the distance of unrelated tokens; or where it, or its end alone, is at 70 % while
    the other sequences of its prompt (of all prompts where it is the only one) are at less than 40 % of that:
    noise is alike within a prompt. Fails too
    where 3 tokens or more, 1 in 500, from 40 % of the prompts have a rollout probability above one half but
    less than e^-8 in training. `observed` counts the sequences
    concerned. Ids that differ only within a few tokens of a sequence are not seen here: compare the ids
    themselves for that.
    """
    name = "same tokens on both sides"
    rows = np.flatnonzero(layout.lengths >= MIN_LENGTH)
    if rows.size == 0:
        return not_run("MP101", name, f"no sequence of {MIN_LENGTH} tokens")
    gap = np.minimum(np.abs(train_logprobs - rollout_logprobs), CAP)
    shares = np.array([_shares(train_logprobs, rollout_logprobs, gap, layout, int(i)) for i in rows])
    peers = _median_of_others(shares[:, 0], layout.cluster_index[rows])
    whole, start, end = shares.T
    odd_whole = (whole > UNRELATED) & (peers < 0.4 * whole)
    odd_end = (end > UNRELATED) & (start < 0.4 * end) & (peers < 0.4 * end)
    concerned = int(np.count_nonzero((whole > CERTAINLY_UNRELATED) | odd_whole | odd_end))
    impossible = (rollout_logprobs > np.log(0.5)) & (train_logprobs < IMPOSSIBLE)
    count = int(np.count_nonzero(impossible))
    prompts = np.unique(layout.token_cluster[impossible]).size
    many = count >= max(3, 2e-3 * gap.size) and prompts >= max(2, 0.4 * layout.num_clusters)
    detail = (
        f"{concerned} of {rows.size} sequences look unrelated;"
        f" {count} tokens are likely in the rollout and impossible in training"
    )
    return Check("MP101", name, "fail" if concerned or many else "pass", float(concerned), 0.0, detail)


def _shares(
    train_logprobs: FloatArray,
    rollout_logprobs: FloatArray,
    gap: FloatArray,
    layout: SequenceLayout,
    index: int,
) -> tuple[float, float, float]:
    """Distance of the sides over that of unrelated tokens: the whole sequence, all but its end, its end."""
    start, stop = int(layout.offsets[index]), int(layout.offsets[index + 1])
    whole = float(gap[start:stop].mean())
    first, last = float(gap[start : stop - TAIL_LENGTH].mean()), float(gap[stop - TAIL_LENGTH : stop].mean())
    if max(whole, last) <= EDGE_GAP:
        return 0.0, 0.0, 0.0
    unrelated = unrelated_distance(train_logprobs[start:stop], rollout_logprobs[start:stop])
    if unrelated == 0.0:
        return 0.0, 0.0, 0.0
    return whole / unrelated, first / unrelated, last / unrelated


def _median_of_others(values: FloatArray, clusters: IntArray) -> FloatArray:
    """Median over the other sequences of the prompt, or over all where there is no other."""
    result = np.full(values.size, float(np.median(values)))
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        for place in members if members.size > 1 else ():
            result[place] = np.median(values[members[members != place]])
    return result


def check_padding(train_logprobs: FloatArray, rollout_logprobs: FloatArray, layout: SequenceLayout) -> Check:
    """MP102 for padding: no sequence ends or begins in placeholders.

    Fails where, at an end of a sequence, one side repeats one number bit for bit (0 as a rule) over 3 tokens
    or more while the other side varies and is over 0.1 nats away on average. `observed` is the share of such
    sequences.
    """
    name = "no padding in the responses"
    rows = np.flatnonzero(layout.lengths >= MIN_RUN)
    if rows.size == 0:
        return not_run("MP102", name, f"no sequence of {MIN_RUN} tokens")
    padded = 0
    for index in rows:
        part = slice(int(layout.offsets[index]), int(layout.offsets[index + 1]))
        train, rollout = train_logprobs[part], rollout_logprobs[part]
        padded += any(
            _starts_in_padding(one, other) or _starts_in_padding(one[::-1], other[::-1])
            for one, other in ((train, rollout), (rollout, train))
        )
    detail = f"{padded} of {rows.size} sequences end or begin in a constant on one side"
    return Check("MP102", name, "fail" if padded else "pass", padded / rows.size, 0.0, detail)


def _starts_in_padding(one: FloatArray, other: FloatArray) -> bool:
    differs = np.flatnonzero(one != one[0])
    run = int(differs[0]) if differs.size else int(one.size)
    if run < MIN_RUN or np.all(other[:run] == other[0]):
        return False
    return float(np.abs(one[:run] - other[:run]).mean()) > EDGE_GAP


def check_edges(train_logprobs: FloatArray, rollout_logprobs: FloatArray, layout: SequenceLayout) -> Check:
    """MP101 for the mask: the first and the last token are sampled ones too.

    Fails where one of them is an outlier (over 1 nat, and over 10 times the median of its sequence) in a
    quarter or more of at least 8 sequences: a prompt token inside the mask, or an end token that was appended
    and not sampled. `observed` is that share.
    """
    name = "mask covers the response only"
    rows = np.flatnonzero(layout.lengths >= 2 * MIN_RUN)
    if rows.size < MIN_EDGE_SEQUENCES:
        return not_run(
            "MP101", name, f"{rows.size} sequences of {2 * MIN_RUN} tokens; {MIN_EDGE_SEQUENCES} needed"
        )
    gap = np.abs(train_logprobs - rollout_logprobs)
    typical = np.array([np.median(gap[layout.offsets[i] : layout.offsets[i + 1]]) for i in rows])
    bound = np.maximum(EDGE_OUTLIER, EDGE_FACTOR * typical)
    first = float(np.mean(gap[layout.offsets[rows]] > bound))
    last = float(np.mean(gap[layout.offsets[rows + 1] - 1] > bound))
    share = max(first, last)
    detail = (
        f"the first token is an outlier in {first:.0%} of {rows.size} sequences and the last in {last:.0%}"
    )
    return Check("MP101", name, "fail" if share >= EDGE_SHARE else "pass", share, EDGE_SHARE, detail)
