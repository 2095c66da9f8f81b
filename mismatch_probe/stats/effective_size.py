"""Effective sample size of importance weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.stats.layout import finite_array
from mismatch_probe.stats.logspace import log_sum_exp


@dataclass(frozen=True, slots=True)
class EffectiveSampleSize:
    """How many of n weighted entries count.

    A sample of heavy-tailed weights flatters itself: with n entries the fraction cannot fall below 1/n
    however small the true value is. Read it beside the Pareto k of `pareto_k`, never alone.

    Attributes:
        ess: Kish (sum W)^2 / sum W^2, in entries.
        fraction: `ess` / n.
        entropy_fraction: exp(entropy of the normalised weights) / n.
        max_weight_share: Largest normalised weight.
        log_mean_weight: log of the mean weight, nats; 0 in expectation.
        n: Entries.
    """

    ess: float
    fraction: float
    entropy_fraction: float
    max_weight_share: float
    log_mean_weight: float
    n: int


def effective_sample_size(log_weight: npt.ArrayLike) -> EffectiveSampleSize:
    """Kish and entropy effective sample sizes, in log space.

    Args:
        log_weight: [n] nats; any magnitude, since only differences are exponentiated.

    Raises:
        InconclusiveError: No entries, or entries that are not finite.
    """
    values = finite_array(log_weight, "log_weight")
    total = log_sum_exp(values)
    share = np.exp(values - total)
    entropy = -float(np.sum(share * (values - total)))
    ess = math.exp(2.0 * total - log_sum_exp(2.0 * values))
    return EffectiveSampleSize(
        ess=ess,
        fraction=ess / values.size,
        entropy_fraction=math.exp(entropy) / values.size,
        max_weight_share=float(share.max()),
        log_mean_weight=total - math.log(values.size),
        n=int(values.size),
    )
