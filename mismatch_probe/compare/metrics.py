"""What two runs are compared by: functions of sums by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.layout import FloatArray, SequenceLayout

Worse = Literal["more", "less"]
_EXTREME = float(np.log(2.0))


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a run that is a function of sums over its prompts.

    Attributes:
        name: Stable name.
        label: For readers.
        unit: Of the value.
        columns: Names of the sums that it is made from.
        function: Takes sums [..., columns] and gives values [...].
        positive: At least 0: compared as a ratio where neither run has exactly 0.
        worse: Which way is worse, or None for a number that is only told.
    """

    name: str
    label: str
    unit: str
    columns: tuple[str, ...]
    function: Callable[[FloatArray], FloatArray]
    positive: bool = False
    worse: Worse | None = None


def _mean(sums: FloatArray) -> FloatArray:
    return np.divide(sums[..., 0], sums[..., 1])


def _spread(sums: FloatArray) -> FloatArray:
    """Standard deviation from the sums of squares, of values, and their number."""
    square, value, n = (sums[..., column] for column in range(3))
    variance = np.divide(square, n) - np.square(np.divide(value, n))
    spread: FloatArray = np.sqrt(np.maximum(variance, 0.0) * np.divide(n, n - 1.0))
    return spread


def _share(sums: FloatArray) -> FloatArray:
    return 1.0 - np.divide(sums[..., 0], sums[..., 1])


METRICS: tuple[Metric, ...] = (
    Metric("k3", "token K3", "nats", ("k3", "tokens"), _mean, positive=True, worse="more"),
    Metric("mean_abs_log_ratio", "mean |log-ratio|", "nats", ("absolute", "tokens"), _mean, positive=True, worse="more"),
    Metric("mean_log_ratio", "mean log-ratio (minus K1, minus kappa)", "nats", ("log_ratio", "tokens"), _mean),
    Metric("extreme_rate_2", "tokens beyond a ratio of 2", "share of tokens", ("extreme", "tokens"), _mean, worse="more"),
    Metric("log_weight_mean", "mean of log W", "nats", ("log_weight", "sequences"), _mean),
    Metric(
        "log_weight_std", "standard deviation of log W", "nats", ("squared_weight", "log_weight", "sequences"), _spread,
        positive=True, worse="more",
    ),
    Metric("flip_rate", "routers with other experts", "share of routers", ("agreeing", "routers"), _share, worse="more"),
    Metric("mean_length", "response length", "tokens", ("tokens", "sequences"), _mean),
    Metric("mean_reward", "reward", "", ("reward", "rewarded"), _mean),
)  # fmt: skip


def step_metric(start: str, end: str) -> Metric:
    """The K3 of one step between legs: it says where a change comes from, and is itself neither worse nor better."""
    columns = (step_column(start, end), "tokens")
    return Metric(f"k3[{start} -> {end}]", f"K3 of {start} -> {end}", "nats", columns, _mean, positive=True)


def step_column(start: str, end: str) -> str:
    """Name of the column that a step's K3 sums have."""
    return f"k3 {start} -> {end}"


def drift_sums(log_ratio: FloatArray, layout: SequenceLayout) -> dict[str, FloatArray]:
    """Sums by prompt of everything that the tokens' log-ratios give.

    Args:
        log_ratio: float64 [tokens], nats.
        layout: How tokens fall into sequences and prompts.

    Returns:
        float64 [prompts] by column.
    """
    columns = {
        "tokens": np.ones_like(log_ratio),
        "log_ratio": log_ratio,
        "absolute": np.abs(log_ratio),
        "k3": token_k3(log_ratio),
        "extreme": (np.abs(log_ratio) > _EXTREME).astype(np.float64),
    }
    weight = layout.sequence_sums(log_ratio)
    filled = (layout.lengths > 0).astype(np.float64)
    return {name: by_prompt(layout, layout.sequence_sums(values)) for name, values in columns.items()} | {
        "log_weight": by_prompt(layout, weight),
        "squared_weight": by_prompt(layout, np.square(weight)),
        "sequences": by_prompt(layout, filled),
    }


def by_prompt(layout: SequenceLayout, values: FloatArray) -> FloatArray:
    """Sums of a per-sequence array over each prompt, float64 [num_clusters]."""
    sums = np.bincount(layout.cluster_index, weights=values, minlength=layout.num_clusters)
    return sums.astype(np.float64)


def applicable(
    first: Mapping[str, FloatArray], second: Mapping[str, FloatArray], steps: tuple[Metric, ...]
) -> tuple[Metric, ...]:
    """The metrics whose columns both runs have."""
    return tuple(
        metric
        for metric in (*METRICS, *steps)
        if all(column in first and column in second for column in metric.columns)
    )
