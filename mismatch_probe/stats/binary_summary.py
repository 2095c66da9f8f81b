"""What "this token or any other" says of the drift: the divergences that trust-region methods mask by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mismatch_probe.stats.divergences import binary_divergences
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import POSITIVE_MEAN, interval_from_table
from mismatch_probe.stats.layout import FloatArray

ABOVE_ZERO = 1e-3
BINARY_COLUMNS = 5
_TV, _ROLLOUT_TRAIN, _TRAIN_ROLLOUT, _LOGIT, _COUNTED = range(BINARY_COLUMNS)


@dataclass(frozen=True, slots=True)
class BinarySummary:
    """Means over tokens of `BinaryDivergences`, nats but for `tv`.

    A side that rounds a probability to exactly 1 leaves no mass for any other token: where one side does and
    the other does not, the divergences have no finite value and the token is left out of all but `tv`.

    Attributes:
        tv: Mean of |p - q|.
        kl_rollout_train: Mean of KL(mu || pi) of the two-outcome law.
        kl_train_rollout: Mean of KL(pi || mu) of it.
        abs_logit_displacement: Mean of |logit p - logit q|.
        num_left_out: Tokens with a probability of exactly 1 on one side only.
    """

    tv: Estimate
    kl_rollout_train: Estimate
    kl_train_rollout: Estimate
    abs_logit_displacement: Estimate
    num_left_out: int


def binary_columns(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> FloatArray:
    """What the summary sums, float64 [5, tokens]: tv, both KL, |logit displacement|, whether the token counts.

    Args:
        train_logprobs: float64 [tokens], finite; values above 0 are read as 0.
        rollout_logprobs: float64 [tokens].
    """
    train, rollout = np.minimum(train_logprobs, 0.0), np.minimum(rollout_logprobs, 0.0)
    if not train.size:
        return np.zeros((BINARY_COLUMNS, 0))
    found = binary_divergences(train, rollout)
    counted = (train < 0.0) == (rollout < 0.0)
    finite = [
        np.where(counted, column, 0.0)
        for column in (found.kl_rollout_train, found.kl_train_rollout, np.abs(found.logit_displacement))
    ]
    return np.stack([found.tv, *finite, counted.astype(np.float64)])


def binary_summary_from_table(table: FloatArray, num_above_zero: int) -> BinarySummary:
    """The summary from sums by prompt.

    Args:
        table: float64 [prompts with tokens, 6]: sums of `binary_columns`, and the number of tokens.
        num_above_zero: Tokens with a log-probability above 0.001 on either side.
    """
    n, counted = int(table[:, -1].sum()), int(table[:, _COUNTED].sum())
    if num_above_zero:
        reason = f"{num_above_zero} log-probabilities are above 0 (MP103)"
        missing = Estimate(None, None, None, n, reason)
        return BinarySummary(missing, missing, missing, missing, n - counted)

    def mean(column: int) -> Estimate:
        if not counted:
            return Estimate(None, None, None, 0, "one side gives every token a probability of exactly 1")
        rows = table[table[:, _COUNTED] > 0][:, [column, _COUNTED]]
        return interval_from_table(rows, POSITIVE_MEAN, n=counted)

    return BinarySummary(
        tv=interval_from_table(table[:, [_TV, -1]], POSITIVE_MEAN, n=n),
        kl_rollout_train=mean(_ROLLOUT_TRAIN),
        kl_train_rollout=mean(_TRAIN_ROLLOUT),
        abs_logit_displacement=mean(_LOGIT),
        num_left_out=n - counted,
    )


def count_above_zero(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> int:
    """Tokens that have a log-probability above 0.001 on either side."""
    return int(np.count_nonzero((train_logprobs > ABOVE_ZERO) | (rollout_logprobs > ABOVE_ZERO)))
