"""Drift averaged over sequences, each with the same say whatever its length, and perplexities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import MEAN, POSITIVE_MEAN, interval_from_table
from mismatch_probe.stats.layout import FloatArray, SequenceLayout
from mismatch_probe.stats.means import EXP_LIMIT, OVERFLOW


@dataclass(frozen=True, slots=True)
class SequenceSums:
    """Sums over the tokens of each sequence that has tokens.

    Attributes:
        size: Of |l|, float64 [sequences], nats.
        k2: Of l^2 / 2.
        k3: Of exp(l) - 1 - l; infinite where that leaves float64.
        train: Of the training log-probabilities, nats; None where they are not known.
    """

    size: FloatArray
    k2: FloatArray
    k3: FloatArray
    train: FloatArray | None


@dataclass(frozen=True, slots=True)
class TokenMeans:
    """Means over sequences of the mean over a sequence's tokens, nats: "seq-mean-token-mean".

    Attributes:
        k1: Of -l; also the gap of log-perplexities, training minus rollout.
        k2: Of l^2 / 2.
        k3: Of exp(l) - 1 - l.
        mean_abs_log_ratio: Of |l|.
    """

    k1: Estimate
    k2: Estimate
    k3: Estimate
    mean_abs_log_ratio: Estimate


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Means over sequences of exp(-mean log-probability), and of the quotient of the sides.

    Attributes:
        train: Of the training side.
        rollout: Of the rollout.
        ratio: Mean of training over rollout, exp(-mean l) of each sequence.
    """

    train: Estimate
    rollout: Estimate
    ratio: Estimate


def token_means(log_weight: FloatArray, sums: SequenceSums, layout: SequenceLayout) -> TokenMeans:
    """Averages over sequences.

    Args:
        log_weight: float64 [sequences], nats.
        sums: Of the same sequences.
        layout: Their lengths, all above 0, and prompts.
    """
    return TokenMeans(
        k1=_mean(-log_weight / layout.lengths, layout, positive=False),
        k2=_mean(sums.k2 / layout.lengths, layout, positive=True),
        k3=_mean(sums.k3 / layout.lengths, layout, positive=True),
        mean_abs_log_ratio=_mean(sums.size / layout.lengths, layout, positive=True),
    )


def perplexity(log_weight: FloatArray, sums: SequenceSums, layout: SequenceLayout) -> Perplexity | None:
    """Perplexities of both sides, or None where the log-probabilities are not known; arguments as above."""
    if sums.train is None:
        return None
    train = -sums.train / layout.lengths
    gap = -log_weight / layout.lengths
    return Perplexity(
        train=_exponential(train, layout),
        rollout=_exponential(train - gap, layout),
        ratio=_exponential(gap, layout),
    )


def _exponential(exponent: FloatArray, layout: SequenceLayout) -> Estimate:
    if float(exponent.max()) > EXP_LIMIT:
        return Estimate(None, None, None, int(exponent.size), OVERFLOW)
    return _mean(np.exp(exponent), layout, positive=True)


def _mean(values: FloatArray, layout: SequenceLayout, *, positive: bool) -> Estimate:
    if not np.all(np.isfinite(values)):
        return Estimate(None, None, None, int(values.size), OVERFLOW)
    statistic = POSITIVE_MEAN if positive else MEAN
    return interval_from_table(layout.sequence_table(values), statistic, n=int(values.size))
