"""What the report shows of per-token drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.binary_summary import (
    BinarySummary,
    binary_columns,
    binary_summary_from_table,
    count_above_zero,
)
from mismatch_probe.stats.buckets import (
    ENTROPY_EDGES,
    Bucket,
    Histogram2D,
    TokenAt,
    buckets_by_label,
    buckets_by_value,
    position_buckets,
    probability_buckets,
    probability_histogram,
    worst_tokens,
)
from mismatch_probe.stats.clusters import design_effect_from_table
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.kl import CLAMP, chi2, token_k2, token_k3
from mismatch_probe.stats.layout import SequenceLayout, finite_array
from mismatch_probe.stats.means import k3_mean, token_chi2, token_mean, token_mean_ratio
from mismatch_probe.stats.tails import LEVELS, TAUS, ExtremeRate, extreme_rates, quantiles, top_share


@dataclass(frozen=True, slots=True)
class TokenQuantiles:
    """Quantiles at `levels` of l and |l|, nats; each within `relative_error` of itself."""

    levels: tuple[float, ...]
    log_ratio: tuple[float, ...]
    abs_log_ratio: tuple[float, ...]
    relative_error: float = 0.0


@dataclass(frozen=True, slots=True)
class TopShare:
    """Share of sums that the largest `fraction` of tokens carries; None where the sum is 0 or overflows."""

    fraction: float
    k3: float | None
    abs_log_ratio: float | None


@dataclass(frozen=True, slots=True)
class TokenBuckets:
    """The same tokens in several partitions; None where the data for one was not given."""

    probability: tuple[Bucket, ...]
    position: tuple[Bucket, ...]
    prompt: tuple[Bucket, ...]
    entropy: tuple[Bucket, ...] | None
    token_class: tuple[Bucket, ...] | None


@dataclass(frozen=True, slots=True)
class TokenSummary:
    """Per-token drift; estimates in nats with intervals over prompts. Section `token` of the result.

    Attributes:
        num_tokens: Response tokens.
        k1: Mean of -l.
        k2: Mean of l^2 / 2.
        k3: Mean of exp(l) - 1 - l.
        k3_clamped: k3 with l clamped to +-20.
        num_clamped: Tokens that the clamp moves.
        mean_log_ratio: Mean of l.
        mean_abs_log_ratio: Mean of |l|.
        max_abs_log_ratio: Largest |l|.
        mean_ratio: Mean of exp(l), 1 in expectation.
        chi2: Mean of exp(2 l), minus 1.
        chi2_clamped: chi2 with l clamped to +-20.
        renyi2: log of the mean of exp(2 l); never overflows.
        binary: Divergences of the two-outcome law of the sampled token.
        design_effect: Variance of the mean of l over what independent tokens would give; None for one prompt, or where l
            does not vary.
        exact: Every l is 0.
        quantiles: Of l and |l|.
        top_share: Concentration in the largest 0.1 % of the tokens.
        extreme: Rates of ratios outside [1/tau, tau].
        buckets: By probability, position, prompt, entropy, token class.
        by_probability: 2-D histogram for the figure.
        worst: Tokens with the largest |l|.
    """

    num_tokens: int
    k1: Estimate
    k2: Estimate
    k3: Estimate
    k3_clamped: float
    num_clamped: int
    mean_log_ratio: Estimate
    mean_abs_log_ratio: Estimate
    max_abs_log_ratio: float
    mean_ratio: Estimate
    chi2: Estimate
    chi2_clamped: float
    renyi2: float
    binary: BinarySummary
    design_effect: float | None
    exact: bool
    quantiles: TokenQuantiles
    top_share: TopShare
    extreme: tuple[ExtremeRate, ...]
    buckets: TokenBuckets
    by_probability: Histogram2D
    worst: tuple[TokenAt, ...]


def summarise_tokens(
    log_ratio: npt.ArrayLike,
    rollout_logprobs: npt.ArrayLike,
    train_logprobs: npt.ArrayLike,
    offsets: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    entropy: npt.ArrayLike | None = None,
    token_class: npt.ArrayLike | None = None,
    taus: Sequence[float] = TAUS,
    top_fraction: float = 0.001,
    num_worst: int = 20,
) -> TokenSummary:
    """Measures per-token drift.

    Args:
        log_ratio: [tokens] train minus rollout, nats.
        rollout_logprobs: [tokens] nats.
        train_logprobs: [tokens] nats.
        offsets: int64 [sequences + 1].
        clusters: int64 [sequences] prompt of each sequence.
        entropy: [tokens] of either side's law, nats, where known.
        token_class: [tokens] whole-number class of the sampled token, where known.
        taus: Bounds for the rates of extreme ratios.
        top_fraction: Of tokens, for the concentration.
        num_worst: How many worst tokens to list.

    Raises:
        ConfigError: The arrays do not fit together.
        InconclusiveError: No tokens, or tokens that are not finite.
    """
    values = finite_array(log_ratio, "log_ratio")
    rollout = finite_array(rollout_logprobs, "rollout_logprobs")
    train = finite_array(train_logprobs, "train_logprobs")
    layout = SequenceLayout.from_arrays(offsets, clusters, num_tokens=values.size)
    if not values.shape == rollout.shape == train.shape:
        raise ConfigError("log_ratio and the log-probabilities must be of one length")
    absolute, k3, square = np.abs(values), token_k3(values), chi2(values)
    return TokenSummary(
        num_tokens=int(values.size),
        k1=token_mean(-values, layout),
        k2=token_mean(token_k2(values), layout, positive=True),
        k3=k3_mean(values, layout),
        k3_clamped=float(token_k3(np.clip(values, -CLAMP, CLAMP)).mean()),
        num_clamped=int(np.count_nonzero(absolute > CLAMP)),
        mean_log_ratio=token_mean(values, layout),
        mean_abs_log_ratio=token_mean(absolute, layout, positive=True),
        max_abs_log_ratio=float(absolute.max()),
        mean_ratio=token_mean_ratio(values, layout),
        chi2=token_chi2(values, layout),
        chi2_clamped=square.clamped,
        renyi2=square.renyi2,
        binary=binary_summary_from_table(
            layout.token_table(*binary_columns(train, rollout)), count_above_zero(train, rollout)
        ),
        design_effect=design_effect_from_table(layout.token_table(values, values * values)),
        exact=not np.any(values),
        quantiles=TokenQuantiles(LEVELS, quantiles(values), quantiles(absolute)),
        top_share=TopShare(
            top_fraction,
            top_share(k3, top_fraction) if np.all(np.isfinite(k3)) else None,
            top_share(absolute, top_fraction),
        ),
        extreme=extreme_rates(values, taus, layout.token_cluster),
        buckets=TokenBuckets(
            probability=probability_buckets(train, rollout),
            position=position_buckets(values, layout),
            prompt=buckets_by_label(layout.clusters[layout.token_sequence], values),
            entropy=None if entropy is None else buckets_by_value(entropy, values, ENTROPY_EDGES),
            token_class=None if token_class is None else buckets_by_label(token_class, values),
        ),
        by_probability=probability_histogram(train, rollout),
        worst=worst_tokens(train, rollout, layout, num_worst),
    )
