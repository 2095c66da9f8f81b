"""What the report shows of one step between two legs, and how steps go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.layout import FloatArray, SequenceLayout, finite_array
from mismatch_probe.stats.means import k3_mean, token_mean


@dataclass(frozen=True, slots=True)
class StepSummary:
    """Second leg minus first on the same tokens. An entry of `legs.steps` in the result.

    k1 and k3 are divergences of the second leg from the first only where the first leg is the law that the
    tokens were drawn from; between two other legs they are sizes.

    Attributes:
        k1: Mean of -l, nats.
        k3: Mean of exp(l) - 1 - l, nats.
        mean: Mean of l, nats.
        std: Standard deviation of l over tokens (n), nats.
        mean_abs: Mean of |l|, nats.
        max_abs: Largest |l|, nats.
        identical_fraction: Share of tokens with l exactly 0.
        sequence_std: Standard deviation of the sum of l over sequences with tokens (n - 1), nats; None for
            one.
        exact: Every l is 0.
    """

    k1: Estimate
    k3: Estimate
    mean: Estimate
    std: float
    mean_abs: Estimate
    max_abs: float
    identical_fraction: float
    sequence_std: float | None
    exact: bool


def summarise_step(
    log_ratio_between_two_legs: npt.ArrayLike, offsets: npt.ArrayLike, clusters: npt.ArrayLike
) -> StepSummary:
    """Measures one step.

    Args:
        log_ratio_between_two_legs: [tokens] second leg minus first, nats.
        offsets: int64 [sequences + 1].
        clusters: int64 [sequences] prompt of each sequence.

    Raises:
        ConfigError: The arrays do not fit together.
        InconclusiveError: No tokens, or tokens that are not finite.
    """
    values = finite_array(log_ratio_between_two_legs, "log_ratio")
    layout = SequenceLayout.from_arrays(offsets, clusters, num_tokens=values.size)
    absolute = np.abs(values)
    sums = layout.sequence_sums(values)[layout.lengths > 0]
    return StepSummary(
        k1=token_mean(-values, layout),
        k3=k3_mean(values, layout),
        mean=token_mean(values, layout),
        std=float(values.std()),
        mean_abs=token_mean(absolute, layout, positive=True),
        max_abs=float(absolute.max()),
        identical_fraction=float(np.mean(values == 0.0)),
        sequence_std=float(sums.std(ddof=1)) if sums.size > 1 else None,
        exact=not np.any(values),
    )


@dataclass(frozen=True, slots=True)
class StepCovariance:
    """Covariance between steps: what a share of the total would hide.

    Attributes:
        steps: Names in the order given.
        matrix: Covariance of the steps' sums over sequences with tokens (n - 1), nats^2; None for one
            sequence.
        variance_total: Sum of the matrix: the variance of log W of all steps together; None for one sequence.
        token_matrix: Covariance over tokens (n), nats^2.
        token_variance_total: Sum of that.
    """

    steps: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...] | None
    variance_total: float | None
    token_matrix: tuple[tuple[float, ...], ...]
    token_variance_total: float


def covariance_of_steps(steps: Mapping[str, npt.ArrayLike], offsets: npt.ArrayLike) -> StepCovariance:
    """Covariance matrices of steps that add up.

    Args:
        steps: Name -> [tokens] log-ratio of the step, nats; for example `decode->prefill`.
        offsets: int64 [sequences + 1].

    Raises:
        ConfigError: The arrays do not fit together.
        InconclusiveError: No steps, no tokens, or tokens that are not finite.
    """
    if not steps:
        raise InconclusiveError("there are no steps between legs")
    rows = [finite_array(values, name) for name, values in steps.items()]
    if any(row.size != rows[0].size for row in rows):
        raise ConfigError("steps differ in their number of tokens")
    layout = SequenceLayout.from_arrays(offsets, num_tokens=rows[0].size)
    tokens = _covariance(np.array(rows), ddof=0)
    sums = np.array([layout.sequence_sums(row)[layout.lengths > 0] for row in rows])
    matrix = _covariance(sums, ddof=1) if sums.shape[1] > 1 else None
    return StepCovariance(
        steps=tuple(steps),
        matrix=None if matrix is None else _as_tuples(matrix),
        variance_total=None if matrix is None else float(matrix.sum()),
        token_matrix=_as_tuples(tokens),
        token_variance_total=float(tokens.sum()),
    )


def _covariance(rows: FloatArray, *, ddof: int) -> FloatArray:
    centred = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(centred @ centred.T / (rows.shape[1] - ddof), dtype=np.float64)


def _as_tuples(matrix: FloatArray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in row) for row in matrix)
