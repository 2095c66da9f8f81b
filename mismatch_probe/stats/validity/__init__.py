"""Is the measurement valid? Checks that come before any magnitude."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.layout import SequenceLayout
from mismatch_probe.stats.validity.alignment import check_rows, check_shift
from mismatch_probe.stats.validity.check import Check
from mismatch_probe.stats.validity.identity import check_edges, check_padding, check_same_tokens
from mismatch_probe.stats.validity.lattice import (
    HeadLattice,
    bfloat16_spacing,
    check_head_lattice,
    head_lattice,
    round_to_bfloat16,
)
from mismatch_probe.stats.validity.law import (
    TemperatureRatio,
    check_mean_sign,
    check_sampled_law,
    check_support,
    check_temperature,
    temperature_ratio,
)
from mismatch_probe.stats.validity.values import (
    check_finite,
    check_not_positive,
    check_sides_differ,
    usable_tokens,
)

__all__ = [
    "Check",
    "HeadLattice",
    "TemperatureRatio",
    "bfloat16_spacing",
    "check_edges",
    "check_finite",
    "check_head_lattice",
    "check_mean_sign",
    "check_not_positive",
    "check_padding",
    "check_rows",
    "check_same_tokens",
    "check_sampled_law",
    "check_shift",
    "check_sides_differ",
    "check_support",
    "check_temperature",
    "head_lattice",
    "round_to_bfloat16",
    "temperature_ratio",
    "usable_tokens",
    "validity_checks",
]


def validity_checks(
    train_logprobs: npt.ArrayLike,
    rollout_logprobs: npt.ArrayLike,
    offsets: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    entropy: npt.ArrayLike | None = None,
) -> tuple[Check, ...]:
    """Runs every check.

    Values that are not log-probabilities (MP102) are left out of all checks after it.

    Args:
        train_logprobs: [tokens] nats; may hold NaN, infinities and sentinels.
        rollout_logprobs: [tokens] nats, of the leg that the tokens were sampled in.
        offsets: int64 [sequences + 1].
        clusters: int64 [sequences] prompt of each sequence.
        entropy: [tokens] entropy of the training law, nats, where known.

    Raises:
        ConfigError: The arrays do not fit together.
        InconclusiveError: There are no tokens.
    """
    train, rollout = (np.asarray(side, dtype=np.float64) for side in (train_logprobs, rollout_logprobs))
    layout = SequenceLayout.from_arrays(offsets, clusters, num_tokens=train.size)
    if train.shape != rollout.shape or train.ndim != 1:
        raise ConfigError("train and rollout log-probabilities must be one-dimensional and of one length")
    if train.size == 0:
        raise InconclusiveError("there is not one token to check")
    spread = None if entropy is None else np.asarray(entropy, dtype=np.float64)
    if spread is not None and spread.shape != train.shape:
        raise ConfigError("entropy must have one entry a token")
    first = (check_finite(train, rollout), check_not_positive(train, rollout))
    usable = usable_tokens(train, rollout)
    if not np.any(usable):
        return first
    if not np.all(usable):
        kept = np.bincount(layout.token_sequence[usable], minlength=layout.num_sequences)
        layout = SequenceLayout.from_arrays(np.concatenate([[0], np.cumsum(kept)]), layout.clusters)
        train, rollout = train[usable], rollout[usable]
        spread = None if spread is None else spread[usable]
    log_ratio = train - rollout
    if spread is not None and not np.all(np.isfinite(spread)):
        spread = None
    return (
        *first,
        check_padding(train, rollout, layout),
        check_same_tokens(train, rollout, layout),
        check_edges(train, rollout, layout),
        check_mean_sign(log_ratio, layout),
        check_shift(train, rollout, layout),
        check_temperature(train, rollout, layout),
        check_support(train, rollout, layout),
        check_sides_differ(train, rollout),
        check_head_lattice(train, rollout),
        check_rows(train, rollout, layout),
        check_sampled_law(log_ratio, train, layout, spread),
    )
