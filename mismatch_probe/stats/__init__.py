"""Statistics of drift: estimators, intervals over prompts, tails, the length law, validity checks.

Arrays in, numbers or small frozen results out. The data convention everywhere: flat float64 `log_ratio`
[tokens] in nats (training minus rollout), `offsets` int64 [sequences + 1], `clusters` int64 [sequences] with
the prompt of each sequence.
"""

from __future__ import annotations

from mismatch_probe.stats.accumulate import DriftAccumulator
from mismatch_probe.stats.buckets import (
    Bucket,
    Histogram2D,
    SequenceAt,
    TokenAt,
    buckets_by_label,
    buckets_by_value,
    geometric_mean_probability,
    position_buckets,
    probability_buckets,
    probability_histogram,
    worst_sequences,
    worst_tokens,
)
from mismatch_probe.stats.clusters import ClusterError, cluster_standard_error, design_effect
from mismatch_probe.stats.comparisons import (
    PairedDifference,
    holm,
    paired_difference,
    wilson_interval,
    zero_event_upper_bound,
)
from mismatch_probe.stats.dependence import VarianceTime, variance_time
from mismatch_probe.stats.divergences import BinaryDivergences, binary_divergences
from mismatch_probe.stats.effective_size import EffectiveSampleSize, effective_sample_size
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import (
    MEAN,
    MIN_CLUSTERS,
    POSITIVE_MEAN,
    Statistic,
    cluster_bootstrap,
    interval_from_table,
)
from mismatch_probe.stats.kl import (
    ChiSquare,
    KLEstimates,
    chi2,
    kl_estimates,
    token_k1,
    token_k2,
    token_k3,
    token_k3_reverse,
)
from mismatch_probe.stats.layout import SequenceLayout
from mismatch_probe.stats.length_law import Extrapolation, LengthBucket, LengthLaw, length_law
from mismatch_probe.stats.naming import FrameworkMetric, framework_metrics
from mismatch_probe.stats.pareto import ParetoK, pareto_k, smooth_log_weights
from mismatch_probe.stats.sequence_summary import SequenceSummary, summarise_sequences
from mismatch_probe.stats.step_summary import StepCovariance, StepSummary, covariance_of_steps, summarise_step
from mismatch_probe.stats.tails import ExtremeRate, extreme_rates, quantiles, rate_estimate, top_share
from mismatch_probe.stats.token_summary import TokenSummary, summarise_tokens
from mismatch_probe.stats.validity import Check, validity_checks

__all__ = [
    "MEAN",
    "MIN_CLUSTERS",
    "POSITIVE_MEAN",
    "BinaryDivergences",
    "Bucket",
    "Check",
    "ChiSquare",
    "ClusterError",
    "DriftAccumulator",
    "EffectiveSampleSize",
    "Estimate",
    "Extrapolation",
    "ExtremeRate",
    "FrameworkMetric",
    "Histogram2D",
    "KLEstimates",
    "LengthBucket",
    "LengthLaw",
    "PairedDifference",
    "ParetoK",
    "SequenceAt",
    "SequenceLayout",
    "SequenceSummary",
    "Statistic",
    "StepCovariance",
    "StepSummary",
    "TokenAt",
    "TokenSummary",
    "VarianceTime",
    "binary_divergences",
    "buckets_by_label",
    "buckets_by_value",
    "chi2",
    "cluster_bootstrap",
    "cluster_standard_error",
    "covariance_of_steps",
    "design_effect",
    "effective_sample_size",
    "extreme_rates",
    "framework_metrics",
    "geometric_mean_probability",
    "holm",
    "interval_from_table",
    "kl_estimates",
    "length_law",
    "paired_difference",
    "pareto_k",
    "position_buckets",
    "probability_buckets",
    "probability_histogram",
    "quantiles",
    "rate_estimate",
    "smooth_log_weights",
    "summarise_sequences",
    "summarise_step",
    "summarise_tokens",
    "token_k1",
    "token_k2",
    "token_k3",
    "token_k3_reverse",
    "top_share",
    "validity_checks",
    "variance_time",
    "wilson_interval",
    "worst_sequences",
    "worst_tokens",
    "zero_event_upper_bound",
]
