"""Arithmetic of an ablation: what one change does to the drift of the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import InconclusiveError
from mismatch_probe.stats.comparisons import holm, paired_difference
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import Statistic, interval_from_table
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.layout import FloatArray, SequenceLayout, cluster_table, finite_array


@dataclass(frozen=True, slots=True)
class PairedChange:
    """Drift with a knob turned, minus drift without, on the same tokens.

    Attributes:
        k3_before: Mean token K3 of the baseline, nats.
        k3_after: The same with the knob turned.
        k3_change: After minus before, with an interval over prompts; none where its ends would leave the range of the
            prompts' own changes, as they do where one or two prompts carry the change.
        p_value: Two-sided sign flips of prompts' K3 changes; None with one prompt.
        floors: `k3_change` over the noise floor's K3; None where no floor above 0 was measured.
        std_before: Standard deviation of log W over sequences (n - 1), nats; None for one sequence.
        std_after: The same with the knob turned.
        std_change: After minus before, with an interval over prompts; none where an end would lie beyond the largest
            deviation of any sequence, which no standard deviation can reach.
        in_effect: Whether any log ratio changed in any bit.
        identical_fraction: Share of tokens whose log ratio did not change at all.
        mean_abs: Mean |change of the log ratio|, nats.
        max_abs: Largest, nats.
    """

    k3_before: float
    k3_after: float
    k3_change: Estimate
    p_value: float | None
    floors: float | None
    std_before: float | None
    std_after: float | None
    std_change: Estimate
    in_effect: bool
    identical_fraction: float
    mean_abs: float
    max_abs: float


def paired_change(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    offsets: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    floor_k3: float | None,
) -> PairedChange:
    """Compares two readings of the log ratio of the same tokens.

    Args:
        before: [tokens] log ratio of the baseline, nats.
        after: [tokens] log ratio with the knob turned, nats.
        offsets: int64 [sequences + 1].
        clusters: int64 [sequences] prompt of each sequence.
        floor_k3: K3 of the noise floor, nats; None or 0 where none was measured.

    Raises:
        ConfigError: The arrays do not fit together.
        InconclusiveError: No tokens, values that are not finite, or a K3 beyond float64.
    """
    one, two = finite_array(before, "before"), finite_array(after, "after")
    layout = SequenceLayout.from_arrays(offsets, clusters, num_tokens=one.size)
    layout = SequenceLayout.from_arrays(offsets, clusters, num_tokens=two.size)
    with np.errstate(over="ignore"):
        k3 = [layout.sequence_sums(token_k3(values)) for values in (one, two)]
    if not all(np.all(np.isfinite(sums)) for sums in k3):
        raise InconclusiveError("a token's K3 leaves float64")
    found = paired_difference(k3[0], k3[1], layout.clusters, sizes=layout.lengths.astype(np.float64))
    filled = layout.lengths > 0
    sums = [layout.sequence_sums(values)[filled] for values in (one, two)]
    spread = [float(values.std(ddof=1)) if values.size > 1 else None for values in sums]
    moved = np.abs(two - one)
    change = found.difference.value
    by_prompt = cluster_table(layout.clusters, k3[1] - k3[0], layout.lengths.astype(np.float64))
    by_prompt = by_prompt[by_prompt[:, 1] > 0]
    changes = by_prompt[:, 0] / by_prompt[:, 1]
    return PairedChange(
        k3_before=float(k3[0].sum() / layout.num_tokens),
        k3_after=float(k3[1].sum() / layout.num_tokens),
        k3_change=_within(found.difference, float(changes.min()), float(changes.max())),
        p_value=found.p_value,
        floors=change / floor_k3 if floor_k3 and change is not None else None,
        std_before=spread[0],
        std_after=spread[1],
        std_change=_std_change(sums[0], sums[1], layout.clusters[filled]),
        in_effect=bool(np.any(moved)),
        identical_fraction=float(np.mean(moved == 0.0)),
        mean_abs=float(moved.mean()),
        max_abs=float(moved.max()),
    )


def holm_over_rows(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction over the rows of a table; None, where a row tests nothing, stays None and counts for nothing."""
    tested = [index for index, value in enumerate(p_values) if value is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    for index, value in zip(tested, holm([p for p in p_values if p is not None]), strict=True):
        adjusted[index] = value
    return adjusted


def _std_change(before: FloatArray, after: FloatArray, clusters: npt.NDArray[np.int64]) -> Estimate:
    n = int(before.size)
    if n < 2:
        return Estimate(None, None, None, n, "one sequence has no spread")
    layout = SequenceLayout.from_arrays(np.arange(n + 1), clusters)
    centred = [values - values.mean() for values in (before, after)]
    unit = max(float(np.abs(values).max()) for values in centred) or 1.0
    x, y = (values / unit for values in centred)

    def change(sums: FloatArray) -> FloatArray:
        scale = n / (n - 1)
        count = sums[..., 4]
        spreads = [
            np.sqrt(np.maximum(sums[..., i + 1] / count - np.square(sums[..., i] / count), 0.0) * scale)
            for i in (0, 2)
        ]
        return np.asarray(spreads[1] - spreads[0])

    found = interval_from_table(layout.sequence_table(x, x * x, y, y * y), Statistic(change), n=n)
    ends = [None if end is None else end * unit for end in (found.value, found.ci_low, found.ci_high)]
    return _within(Estimate(ends[0], ends[1], ends[2], n, found.reason), -unit, unit)


def _within(estimate: Estimate, low: float, high: float) -> Estimate:
    """Drops an interval that leaves what the sample can hold: a bootstrap-t that few prompts carry has no scale."""
    if estimate.ci_low is None or estimate.ci_high is None:
        return estimate
    if low <= estimate.ci_low and estimate.ci_high <= high:
        return estimate
    reason = "too few prompts carry this change for an interval: read more prompts"
    return Estimate(estimate.value, None, None, estimate.n, reason)
