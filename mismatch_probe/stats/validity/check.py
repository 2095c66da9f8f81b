"""The result of a validity check, and the clustered t-test several of them share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mismatch_probe.stats.layout import FloatArray, SequenceLayout

Status = Literal["pass", "fail", "not_run"]
ALPHA = 1e-3
"""One-sided level of the t-tests; `benchmarks/stats_simulation.py` measures the rate of false alarms."""
MIN_TEST_CLUSTERS = 4


@dataclass(frozen=True, slots=True)
class Check:
    """Whether the numbers are what they claim to be.

    Attributes:
        code: Stable code, MP1xx.
        name: What was checked.
        status: `pass`, `fail`, or `not_run` where the data cannot carry the check; `detail` says why.
        observed: The number that was compared, or None.
        bar: What it was compared with, or None.
        detail: One sentence.
    """

    code: str
    name: str
    status: Status
    observed: float | None
    bar: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class ClusteredMean:
    """A token mean with its jackknife standard error over prompts.

    Attributes:
        mean: Over tokens.
        error: Standard error; 0 where nothing varies.
        num_clusters: Prompts with tokens.
    """

    mean: float
    error: float
    num_clusters: int

    def critical(self, alpha: float = ALPHA) -> float:
        """How far from its expectation the mean may be on one side: t quantile times standard error."""
        from scipy.special import stdtrit

        return float(stdtrit(self.num_clusters - 1, 1.0 - alpha)) * self.error


def clustered_mean(values: FloatArray, layout: SequenceLayout) -> ClusteredMean:
    """Mean over tokens and its jackknife standard error over prompts (infinite for one prompt)."""
    table = layout.token_table(values)
    total = table.sum(axis=0)
    mean = float(total[0] / total[1])
    clusters = table.shape[0]
    if clusters < 2:
        return ClusteredMean(mean, math.inf, clusters)
    left_out = (total[0] - table[:, 0]) / (total[1] - table[:, 1])
    spread = float(np.square(left_out - left_out.mean()).sum())
    return ClusteredMean(mean, math.sqrt((clusters - 1) / clusters * spread), clusters)


def not_run(code: str, name: str, why: str) -> Check:
    """A check that the data cannot carry."""
    return Check(code, name, "not_run", None, None, why)
