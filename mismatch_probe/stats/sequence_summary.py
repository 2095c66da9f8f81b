"""What the report shows of the drift of whole sequences."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.buckets import SequenceAt, worst_sequences
from mismatch_probe.stats.clusters import design_effect
from mismatch_probe.stats.dependence import VarianceTime, pooled_variance_time
from mismatch_probe.stats.effective_size import effective_sample_size
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.kl import chi2, token_k2, token_k3
from mismatch_probe.stats.layout import FloatArray, SequenceLayout, finite_array
from mismatch_probe.stats.length_law import LengthLaw, length_law_from_growth
from mismatch_probe.stats.means import (
    effective_fraction,
    mean_weight_estimate,
    sequence_chi2,
    sequence_mean,
    standard_deviation,
)
from mismatch_probe.stats.pareto import ParetoK, pareto_k
from mismatch_probe.stats.sequence_means import (
    Perplexity,
    SequenceSums,
    TokenMeans,
    perplexity,
    token_means,
)
from mismatch_probe.stats.tails import LEVELS, quantiles

MAX_SCATTER = 2000
HISTOGRAM_BINS = 60


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles `values` at `levels`."""

    levels: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LogWeightSummary:
    """log W of sequences, nats; `std` with n - 1."""

    mean: Estimate
    std: Estimate
    quantiles: Quantiles


@dataclass(frozen=True, slots=True)
class Scatter:
    """At most 2000 sequences, chosen evenly over the sequences ordered by length."""

    length: tuple[int, ...]
    log_weight: tuple[float, ...]
    advantage: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between `edges`, outermost edges included."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SequenceSummary:
    """Drift of whole sequences. Section `sequence` of the result.

    Sequences without tokens have log W = 0 and are counted in `num_empty` but not in anything else.

    Attributes:
        num_sequences: Sequences with tokens.
        num_empty: Sequences without.
        log_weight: Mean, spread and quantiles of log W.
        ess: Kish effective fraction; without an interval where k says that the weights have no variance.
        entropy_ess: exp(entropy) effective fraction.
        k_hat: Pareto k of W, with r_eff from the design effect of log W.
        design_effect: Variance of the mean of log W over what independent sequences would give; None for one
            prompt, or where log W does not vary.
        max_weight_share: Largest normalised weight.
        token_means: The divergences of tokens, averaged over sequences instead of tokens.
        perplexity: Of both sides; None where the log-probabilities are not given.
        chi2: E[W^2] - 1.
        chi2_clamped: chi2 with log W clamped to +-20.
        num_clamped: Sequences that the clamp moves.
        renyi2: log E[W^2].
        mean_weight: E[W], 1 in expectation; in heavy tails a sample mean is nearly always below.
        length_law: Growth of log W with length.
        gaussian_ratio: That of the length law.
        scatter: log W against length.
        histogram: Of log W.
        worst: Sequences with the largest |log W|.
        exact: Every log-ratio is 0.
    """

    num_sequences: int
    num_empty: int
    log_weight: LogWeightSummary
    ess: Estimate
    entropy_ess: float
    k_hat: ParetoK
    design_effect: float | None
    max_weight_share: float
    token_means: TokenMeans
    perplexity: Perplexity | None
    chi2: Estimate
    chi2_clamped: float
    num_clamped: int
    renyi2: float
    mean_weight: Estimate
    length_law: LengthLaw
    gaussian_ratio: Estimate
    scatter: Scatter
    histogram: Histogram
    worst: tuple[SequenceAt, ...]
    exact: bool


def summarise_sequences(
    log_ratio: npt.ArrayLike,
    offsets: npt.ArrayLike,
    clusters: npt.ArrayLike,
    advantages: npt.ArrayLike | None = None,
    *,
    train_logprobs: npt.ArrayLike | None = None,
    num_worst: int = 20,
) -> SequenceSummary:
    """Measures drift of whole sequences.

    Args:
        log_ratio: [tokens] train minus rollout, nats.
        offsets: int64 [sequences + 1].
        clusters: int64 [sequences] prompt of each sequence.
        advantages: [sequences], for the scatter.
        train_logprobs: [tokens] nats, for the perplexities.
        num_worst: How many worst sequences to list.

    Raises:
        ConfigError: The arrays do not fit together.
        InconclusiveError: No tokens, or tokens that are not finite.
    """
    values = finite_array(log_ratio, "log_ratio")
    whole = SequenceLayout.from_arrays(offsets, clusters, num_tokens=values.size)
    kept = np.flatnonzero(whole.lengths > 0)
    layout = SequenceLayout.from_arrays(
        np.concatenate([[0], np.cumsum(whole.lengths[kept])]), whole.clusters[kept]
    )
    advantage = None if advantages is None else np.asarray(advantages, dtype=np.float64)
    if advantage is not None and advantage.shape != whole.clusters.shape:
        raise ConfigError("advantages must have one entry a sequence")
    train = None if train_logprobs is None else finite_array(train_logprobs, "train_logprobs")
    if train is not None and train.shape != values.shape:
        raise ConfigError("log_ratio and train_logprobs must be of one length")
    return sequence_summary_from_weights(
        layout.sequence_sums(values),
        layout,
        sums=SequenceSums(
            size=layout.sequence_sums(np.abs(values)),
            k2=layout.sequence_sums(token_k2(values)),
            k3=layout.sequence_sums(token_k3(values)),
            train=None if train is None else layout.sequence_sums(train),
        ),
        growth=pooled_variance_time(values, layout),
        advantages=None if advantage is None else advantage[kept],
        worst=worst_sequences(values, whole, num_worst),
        num_empty=int(whole.num_sequences - kept.size),
        exact=not np.any(values),
    )


def sequence_summary_from_weights(
    log_weight: FloatArray,
    layout: SequenceLayout,
    *,
    sums: SequenceSums,
    growth: VarianceTime | None,
    advantages: FloatArray | None,
    worst: tuple[SequenceAt, ...],
    num_empty: int,
    exact: bool,
) -> SequenceSummary:
    """The same from log-weights, where the tokens themselves are gone.

    Args:
        log_weight: float64 [sequences with tokens], nats.
        layout: Their lengths and prompts.
        sums: Sums over the tokens of each.
        growth: Variance of block sums, or None.
        advantages: float64 [sequences with tokens] or None.
        worst: Sequences with the largest |log W|.
        num_empty: Sequences without tokens.
        exact: Every log-ratio is 0.
    """
    size = effective_sample_size(log_weight)
    effect = design_effect(log_weight, layout.clusters)
    tail = pareto_k(log_weight, r_eff=1.0 / max(effect, 1.0) if effect else 1.0)
    law = length_law_from_growth(log_weight, layout, growth)
    untrusted, square = _no_variance(tail), chi2(log_weight)
    return SequenceSummary(
        num_sequences=int(log_weight.size),
        num_empty=num_empty,
        log_weight=LogWeightSummary(
            mean=sequence_mean(log_weight, layout),
            std=standard_deviation(log_weight, layout),
            quantiles=Quantiles(LEVELS, quantiles(log_weight)),
        ),
        ess=_without_interval(effective_fraction(log_weight, layout), untrusted),
        entropy_ess=size.entropy_fraction,
        k_hat=tail,
        design_effect=effect,
        max_weight_share=size.max_weight_share,
        token_means=token_means(log_weight, sums, layout),
        perplexity=perplexity(log_weight, sums, layout),
        chi2=_without_interval(sequence_chi2(log_weight, layout), untrusted),
        chi2_clamped=square.clamped,
        num_clamped=square.num_clamped,
        renyi2=square.renyi2,
        mean_weight=_without_interval(mean_weight_estimate(log_weight, layout), untrusted),
        length_law=law,
        gaussian_ratio=law.gaussian_ratio,
        scatter=_scatter(log_weight, layout, advantages),
        histogram=_histogram(log_weight),
        worst=worst,
        exact=exact,
    )


def _no_variance(tail: ParetoK) -> str | None:
    if tail.value is not None and tail.good_k is not None and tail.value > tail.good_k:
        return (
            f"the weights are too heavy-tailed for an interval: Pareto k {tail.value:.2f} with n = {tail.n}"
        )
    return None


def _without_interval(estimate: Estimate, reason: str | None) -> Estimate:
    if reason is None or estimate.value is None:
        return estimate
    return replace(estimate, ci_low=None, ci_high=None, reason=reason)


def _scatter(log_weight: FloatArray, layout: SequenceLayout, advantage: FloatArray | None) -> Scatter:
    order = np.lexsort((log_weight, layout.lengths))
    if order.size > MAX_SCATTER:
        order = order[np.linspace(0, order.size - 1, MAX_SCATTER).round().astype(np.int64)]
    return Scatter(
        length=tuple(int(v) for v in layout.lengths[order]),
        log_weight=tuple(float(v) for v in log_weight[order]),
        advantage=None if advantage is None else tuple(float(v) for v in advantage[order]),
    )


def _histogram(log_weight: FloatArray) -> Histogram:
    low, high = float(log_weight.min()), float(log_weight.max())
    margin = max((high - low) * 1e-6, 1e-12, abs(low) * 1e-12)
    counts, edges = np.histogram(log_weight, bins=HISTOGRAM_BINS, range=(low - margin, high + margin))
    return Histogram(tuple(float(e) for e in edges), tuple(int(c) for c in counts))
