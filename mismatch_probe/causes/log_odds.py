"""Fingerprints in the log-odds of sampled tokens: temperature, penalties, a rounded output head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.stats.divergences import log_complement
from mismatch_probe.stats.layout import SequenceLayout

FloatArray = npt.NDArray[np.float64]

RANGE = (-3.0, 9.0)
CAP = 3.0
MIN_TOKENS = 200
MIN_PROMPTS = 4
SPACINGS = (0.03125, 0.0625, 0.125, 0.25)
"""Distances of neighbouring BF16 logits between 4 and 64 in size."""


@dataclass(frozen=True, slots=True)
class LogOddsTrend:
    """Least squares of the displacement logit p - logit q on its own mean and on whether the token occurred before.

    Attributes:
        slope: On the mean log-odds of both sides; a temperature ratio is (2 + slope) / (2 - slope).
        explained_by_slope: R squared of the mean log-odds alone.
        seen: Displacement of tokens that occurred before against new ones, at equal log-odds, nats.
        seen_t: `seen` over its jackknife standard error over prompts.
        explained_by_seen: What `seen` adds to R squared.
        num_tokens: Tokens with a mean log-odds in [-3, 9].
    """

    slope: float
    explained_by_slope: float
    seen: float
    seen_t: float
    explained_by_seen: float
    num_tokens: int


def log_odds_trend(
    train: FloatArray, rollout: FloatArray, seen: npt.NDArray[np.bool_], layout: SequenceLayout
) -> LogOddsTrend | None:
    """Fits the trend.

    A temperature moves log-odds in proportion to themselves; a repetition penalty moves tokens by whether they occurred.
    Displacements are capped at 3 nats, so that single tokens do not carry the fit.

    Args:
        train: float64 [tokens], nats.
        rollout: float64 [tokens], nats.
        seen: bool [tokens] whether the token stands earlier in its sequence.
        layout: Their sequences.

    Returns:
        None with fewer than 200 tokens in range, 4 prompts, or where nothing varies.
    """
    displacement, middle = _log_odds(train, rollout)
    with np.errstate(invalid="ignore"):
        used = np.isfinite(displacement) & (middle > RANGE[0]) & (middle < RANGE[1])
    clusters = layout.token_cluster[used]
    if clusters.size < MIN_TOKENS or np.unique(clusters).size < MIN_PROMPTS:
        return None
    y = np.clip(displacement[used], -CAP, CAP)
    design = np.column_stack([np.ones(y.size), middle[used], seen[used].astype(np.float64)])
    # Normal equations by prompt: leaving a prompt out is then a subtraction.
    parts = []
    for cluster in np.unique(clusters):
        rows = clusters == cluster
        parts.append((design[rows].T @ design[rows], design[rows].T @ y[rows]))
    gram, moment = np.stack([part[0] for part in parts]), np.stack([part[1] for part in parts])
    total_gram, total_moment = gram.sum(axis=0), moment.sum(axis=0)
    variance = float(np.square(y - y.mean()).sum())
    if variance == 0.0 or np.linalg.cond(total_gram) > 1e12:
        return None
    full = np.linalg.solve(total_gram, total_moment)
    line = np.linalg.solve(total_gram[:2, :2], total_moment[:2])
    left_out = np.linalg.lstsq(total_gram, total_moment, rcond=None)[0][2] * np.ones(len(parts))
    for index in range(len(parts)):
        without = total_gram - gram[index]
        if np.linalg.cond(without) < 1e12:
            left_out[index] = np.linalg.solve(without, total_moment - moment[index])[2]
    groups = len(parts)
    error = math.sqrt((groups - 1) / groups * float(np.square(left_out - left_out.mean()).sum()))
    by_line = 1.0 - float(np.square(y - design[:, :2] @ line).sum()) / variance
    by_both = 1.0 - float(np.square(y - design @ full).sum()) / variance
    return LogOddsTrend(
        slope=float(line[1]),
        explained_by_slope=by_line,
        seen=float(full[2]),
        seen_t=float(full[2]) / error if error > 0.0 else 0.0,
        explained_by_seen=by_both - by_line,
        num_tokens=int(y.size),
    )


@dataclass(frozen=True, slots=True)
class OneSidedRounding:
    """Size and shape of the displacement, against what rounding one side's logits to BF16 does.

    Attributes:
        largest: Largest |displacement|, nats.
        kurtosis: Fourth moment over squared variance: 1.8 for uniform, 2.4 for triangular, 3 for Gaussian errors.
        spacing: Smallest BF16 spacing that holds the largest displacement, or None where none does.
        num_tokens: Tokens in range.
    """

    largest: float
    kurtosis: float
    spacing: float | None
    num_tokens: int


def one_sided_rounding(train: FloatArray, rollout: FloatArray) -> OneSidedRounding | None:
    """Looks at the edge of the displacements.

    Where one side rounds its logits to BF16 and nothing else differs, no displacement exceeds one spacing (half a spacing
    for the token, half for its competitors) and errors are flatter than Gaussian; rounding inside the network, or flipped
    experts, have far heavier tails.

    Returns:
        None with fewer than 200 tokens in range, or where the sides are equal.
    """
    displacement, middle = _log_odds(train, rollout)
    with np.errstate(invalid="ignore"):
        used = np.isfinite(displacement) & (middle > RANGE[0]) & (middle < RANGE[1])
    values = displacement[used]
    if values.size < MIN_TOKENS or float(values.var()) == 0.0:
        return None
    largest = float(np.abs(values).max())
    spacing = next((size for size in SPACINGS if largest <= size), None)
    centred = values - values.mean()
    kurtosis = float((centred**4).mean() / np.square(values.var()))
    return OneSidedRounding(largest, kurtosis, spacing, int(values.size))


def _log_odds(train: FloatArray, rollout: FloatArray) -> tuple[FloatArray, FloatArray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = (side - log_complement(np.minimum(side, 0.0)) for side in (train, rollout))
        return p - q, 0.5 * (p + q)
