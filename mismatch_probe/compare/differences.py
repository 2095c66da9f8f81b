"""Differences of two runs with intervals that resample prompts, paired where both runs have the prompt.

One table holds a row a prompt with the sums of the first run beside those of the second; a prompt that only one run has
stands there with zeros for the other. Every metric is a ratio of sums within a run, so resampling the rows of that table
is the bootstrap of the pair where prompts are shared, and of two independent runs where none is. The interval is that of
`mismatch_probe.stats.intervals`, at a level that Bonferroni's inequality corrects for the number of metrics compared: of two
runs that do not differ, at most 5 % should show any difference (`benchmarks/diff_false_alarms.py`, docs/diff.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mismatch_probe.compare.metrics import Metric
from mismatch_probe.stats.estimate import Estimate, without_wide_interval
from mismatch_probe.stats.intervals import DOMINANCE, MIN_CLUSTERS, Statistic, interval_from_table
from mismatch_probe.stats.layout import FloatArray

LEVEL = 0.95
# At the corrected level a tail holds few resamples of the usual number.
RESAMPLES = 9999
Beyond = Literal["yes", "no", "unknown"]


@dataclass(frozen=True, slots=True)
class RunSums:
    """One run as sums by prompt.

    Attributes:
        prompts: A key for each prompt; equal keys are the same prompt.
        columns: float64 [prompts] by name.
    """

    prompts: tuple[bytes, ...]
    columns: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric in both runs.

    Attributes:
        name: Of the metric.
        label: For readers.
        unit: Of the values.
        first: In the first run, or None.
        second: In the second run, or None.
        change: Second minus first; 95 % interval.
        ratio: Second over first; 95 % interval; None where the metric is signed or a run has exactly 0.
        beyond_noise: Whether the interval at the corrected level leaves out "no change"; "unknown" without one.
        worse: The second run is worse by it; None where nothing is beyond noise or the metric has no worse way.
        reason: Why it is unknown.
    """

    name: str
    label: str
    unit: str
    first: float | None
    second: float | None
    change: Estimate
    ratio: Estimate | None
    beyond_noise: Beyond
    worse: bool | None
    reason: str | None = None


def compare_sums(
    first: RunSums, second: RunSums, metrics: Sequence[Metric], *, seed: int = 0
) -> tuple[Difference, ...]:
    """Compares two runs by every metric.

    Args:
        first: The run to compare with.
        second: The run that is compared.
        metrics: What both runs have the columns of.
        seed: Of the resampling.
    """
    level = 1.0 - (1.0 - LEVEL) / max(len(metrics), 1)
    return tuple(_compare(first, second, metric, level, seed) for metric in metrics)


def shared_prompts(first: RunSums, second: RunSums) -> int:
    """Prompts that both runs have."""
    return len(set(first.prompts) & set(second.prompts))


def _compare(first: RunSums, second: RunSums, metric: Metric, level: float, seed: int) -> Difference:
    width = len(metric.columns)
    table = _joint(first, second, metric.columns)
    one, two = (_value(metric.function, side) for side in (table[:, :width], table[:, width:]))
    n = round(float(table[:, width - 1].sum() + table[:, 2 * width - 1].sum()))

    def change(sums: FloatArray) -> FloatArray:
        return metric.function(sums[..., width:]) - metric.function(sums[..., :width])

    def ratio(sums: FloatArray) -> FloatArray:
        return np.divide(metric.function(sums[..., width:]), metric.function(sums[..., :width]))

    reason = _refusal(first, second, metric, (one, two))
    if reason is not None:
        gap = None if one is None or two is None else two - one
        absent = Estimate(gap, None, None, n, reason)
        return Difference(
            metric.name, metric.label, metric.unit, one, two, absent, None, "unknown", None, reason
        )
    as_ratio = metric.positive and bool(one) and bool(two)
    tested = Statistic(ratio, "log") if as_ratio else Statistic(change)
    null = 1.0 if as_ratio else 0.0
    shown = interval_from_table(table, Statistic(change), n=n, seed=seed)
    strict = interval_from_table(table, tested, n=n, resamples=RESAMPLES, seed=seed, level=level)
    relative = without_wide_interval(interval_from_table(table, tested, n=n, seed=seed)) if as_ratio else None
    beyond = _beyond(strict, null)
    worse = None
    if beyond == "yes" and metric.worse is not None and strict.value is not None:
        worse = (strict.value > null) == (metric.worse == "more")
    return Difference(
        metric.name,
        metric.label,
        metric.unit,
        one,
        two,
        shown,
        relative,
        beyond,
        worse,
        strict.reason if beyond == "unknown" else None,
    )


def _joint(first: RunSums, second: RunSums, columns: tuple[str, ...]) -> FloatArray:
    """float64 [prompts of either, 2 * columns]; zeros where a run does not have the prompt."""
    place = {key: index for index, key in enumerate(dict.fromkeys((*first.prompts, *second.prompts)))}
    table = np.zeros((len(place), 2 * len(columns)))
    for side, run in enumerate((first, second)):
        rows = [place[key] for key in run.prompts]
        for index, column in enumerate(columns):
            np.add.at(table[:, side * len(columns) + index], rows, run.columns[column])
    return table


def _value(function: Callable[[FloatArray], FloatArray], table: FloatArray) -> float | None:
    with np.errstate(all="ignore"):
        value = float(function(table.sum(axis=0)))
    return value if np.isfinite(value) else None


def _refusal(first: RunSums, second: RunSums, metric: Metric, values: Sequence[float | None]) -> str | None:
    """Why no difference can be told, or None."""
    if None in values:
        return "a run has no number for it"
    for name, run in (("first", first), ("second", second)):
        if len(set(run.prompts)) < MIN_CLUSTERS:
            return f"the {name} run has {len(set(run.prompts))} prompts: an interval needs {MIN_CLUSTERS}"
        sums = run.columns[metric.columns[0]]
        if metric.positive and sums.sum() > 0 and sums.max() > DOMINANCE * sums.sum():
            return f"one prompt carries {sums.max() / sums.sum():.0%} of the sum in the {name} run"
    return None


def _beyond(strict: Estimate, null: float) -> Beyond:
    if strict.value is None or strict.ci_low is None or strict.ci_high is None:
        return "unknown"
    if strict.value == null:
        return "no"
    return "no" if strict.ci_low <= null <= strict.ci_high else "yes"
