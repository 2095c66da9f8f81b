"""How the log-weight of a sequence grows with its length, and how long sequences may get.

The log-weight of T tokens has mean -kappa T, kappa being the drift per token KL(mu || pi). While errors are
independent and small its variance is 2 kappa T, so that the effective sample size of sequence weights falls
like exp(-variance). The Gaussian-martingale ratio G = variance / (-2 mean) is 1 for Gaussian log-weights with
E[W] = 1; above 1 speaks of heavy tails, dependence or outlier tokens, far below 1 of a systematic shift that
is not noise (a wrong temperature).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.dependence import VarianceTime, pooled_variance_time
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.intervals import MEAN, Statistic, interval_from_table
from mismatch_probe.stats.layout import FloatArray, SequenceLayout, finite_array
from mismatch_probe.stats.means import variance_of_moments, variance_per_token

HORIZON_ESS = 0.1
MAX_STRETCH = 8.0


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """Sequences of similar length.

    Attributes:
        low: Shortest length in the bucket, tokens.
        high: Longest.
        n: Sequences.
        mean_length: Mean length.
        mean_log_weight: Mean log W, nats.
        variance: Variance of log W around -kappa T with the overall kappa, nats^2.
        gaussian_ratio: Variance of the bucket over -2 x its mean log W.
    """

    low: int
    high: int
    n: int
    mean_length: float
    mean_log_weight: float
    variance: float
    gaussian_ratio: Estimate


@dataclass(frozen=True, slots=True)
class Extrapolation:
    """What sequence weights would be at a length that may not have been seen.

    Attributes:
        length: Tokens.
        mean_log_weight: -kappa x length.
        variance: Of log W.
        ess: exp(-variance), the fraction of sequences that count.
        reason: Why the three are without a value, or None.
    """

    length: int
    mean_log_weight: Estimate
    variance: Estimate
    ess: Estimate
    reason: str | None


@dataclass(frozen=True, slots=True)
class LengthLaw:
    """The law of log W against length.

    Attributes:
        kappa: -sum log W / sum T, nats per token.
        variance_per_token: sum (log W + kappa T)^2 / sum T times n / (n - 1), nats^2 per token.
        gaussian_ratio: Variance over -2 x mean, all lengths together: variance_per_token / (2 kappa).
        slope: 2H from the variance of block sums; 1 for independent errors.
        variance_time: The block variances themselves, or None where sequences are too short or too few.
        horizon_tokens: Length at which the effective fraction falls to 10 %, from the variance and (only
            where its interval excludes 1) the slope; None where it cannot be had, or lies beyond 8 times the
            longest sequence, farther than the data carry.
        horizon_low: The same at the unfavourable ends of the intervals, at most 8 times the longest sequence;
            or None.
        horizon_high: At the favourable ends, or None.
        horizon_from_kappa: ln(10) / (2 kappa), the same under a Gaussian martingale; None unless kappa is
            measurably above 0.
        buckets: By length.
        mean_length: Mean length of the sequences that have tokens.
        max_length: Longest.
        num_sequences: Sequences with tokens.
        exact: Every log-weight is 0.
        horizon_reason: Why there is no horizon, or None.
    """

    kappa: Estimate
    variance_per_token: Estimate
    gaussian_ratio: Estimate
    slope: Estimate
    variance_time: VarianceTime | None
    horizon_tokens: float | None
    horizon_low: float | None
    horizon_high: float | None
    horizon_from_kappa: float | None
    buckets: tuple[LengthBucket, ...]
    mean_length: float
    max_length: int
    num_sequences: int
    exact: bool
    horizon_reason: str | None

    def extrapolate(self, length: int) -> Extrapolation:
        """Mean, variance and effective fraction of sequence weights at a length, or a refusal.

        The interval of the variance combines the interval of the variance per token with the range between
        growth like T and growth like T^slope at the ends of the slope's interval, so that it widens with the
        distance from the measured mean length. Refused: where an interval is missing, beyond 8 times the
        longest sequence, and for the effective fraction where log W is measurably not a Gaussian martingale
        (G outside [0.5, 2]).

        Args:
            length: Tokens, at least 1.

        Raises:
            ConfigError: `length` is below 1.
        """
        if length < 1:
            raise ConfigError("a sequence has at least 1 token")
        reason = self._refusal(length)
        if reason is not None:
            nothing = Estimate(None, None, None, self.num_sequences, reason)
            return Extrapolation(length, nothing, nothing, nothing, reason)
        mean = _scaled(self.kappa, -float(length))
        low, value, high = self._variance_at(length)
        variance = Estimate(value, low, high, self.num_sequences)
        ratio = self.gaussian_ratio
        if self.exact:
            return Extrapolation(length, mean, variance, Estimate(1.0, 1.0, 1.0, self.num_sequences), None)
        if ratio.ci_low is None or ratio.ci_high is None or ratio.ci_low > 2.0 or ratio.ci_high < 0.5:
            reason = (
                "log W is no Gaussian martingale (G outside [0.5, 2] or unknown): exp(-variance) says nothing"
            )
            return Extrapolation(
                length, mean, variance, Estimate(None, None, None, self.num_sequences, reason), reason
            )
        ess = Estimate(math.exp(-value), math.exp(-high), math.exp(-low), self.num_sequences)
        return Extrapolation(length, mean, variance, ess, None)

    def _refusal(self, length: int) -> str | None:
        if self.exact:
            return None
        for name, part in (("kappa", self.kappa), ("the variance", self.variance_per_token)):
            if part.ci_low is None:
                return f"{name} has no interval: {part.reason}"
        if length > MAX_STRETCH * self.max_length:
            return f"{length} tokens is over {MAX_STRETCH:.0f} times the longest sequence ({self.max_length})"
        if length > self.max_length and self.slope.ci_low is None:
            return "beyond the longest sequence the growth of the variance must be known, and it is not"
        return None

    def _variance_at(self, length: int) -> tuple[float, float, float]:
        per_token = self.variance_per_token
        if self.exact or per_token.value is None or per_token.ci_low is None or per_token.ci_high is None:
            return 0.0, 0.0, 0.0
        stretch = length / self.mean_length
        growth = [1.0, *(v for v in (self.slope.ci_low, self.slope.ci_high) if v is not None)]
        factors = [self.mean_length * stretch**g for g in growth]
        value = per_token.value * self.mean_length * stretch ** _growth(self.slope)
        return per_token.ci_low * min(factors), value, per_token.ci_high * max(factors)


def length_law(
    log_weight: npt.ArrayLike,
    lengths: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    log_ratio: npt.ArrayLike | None = None,
    num_buckets: int = 5,
) -> LengthLaw:
    """Measures the length law.

    Args:
        log_weight: [sequences] sum of log-ratios, nats.
        lengths: [sequences] response tokens; sequences without tokens are left out.
        clusters: [sequences] prompt of each sequence.
        log_ratio: [sum of lengths] the tokens in order; without them there is no slope.
        num_buckets: Buckets by length, of about equal numbers of sequences (at least 5 in each).

    Raises:
        ConfigError: The arrays do not fit together.
        InconclusiveError: No sequence has a token, or a log-weight is not finite.
    """
    weights = finite_array(log_weight, "log_weight")
    sizes, labels = np.asarray(lengths, dtype=np.int64), np.asarray(clusters, dtype=np.int64)
    if not weights.shape == sizes.shape == labels.shape or np.any(sizes < 0):
        raise ConfigError("log_weight, lengths and clusters must be of one length, and lengths at least 0")
    has_tokens = sizes > 0
    if not np.any(has_tokens):
        raise InconclusiveError("no sequence has a token")
    growth = None
    if log_ratio is not None:
        tokens = finite_array(log_ratio, "log_ratio")
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        growth = pooled_variance_time(
            tokens, SequenceLayout.from_arrays(offsets, labels, num_tokens=tokens.size)
        )
    kept = np.concatenate([[0], np.cumsum(sizes[has_tokens])])
    layout = SequenceLayout.from_arrays(kept, labels[has_tokens])
    return length_law_from_growth(weights[has_tokens], layout, growth, num_buckets=num_buckets)


def length_law_from_growth(
    weights: FloatArray, layout: SequenceLayout, growth: VarianceTime | None, *, num_buckets: int = 5
) -> LengthLaw:
    """The length law where the variance of block sums is known already.

    Args:
        weights: float64 [sequences] log W, nats.
        layout: Their lengths, all above 0, and prompts.
        growth: Variance of block sums, or None.
        num_buckets: Buckets by length.
    """
    n, lengths = weights.size, layout.lengths.astype(np.float64)
    kappa_value = -float(weights.sum()) / float(lengths.sum())
    table = layout.sequence_table(-weights, lengths)[:, :2]
    kappa = interval_from_table(table, MEAN, n=n)
    moments = layout.sequence_table(weights, weights * lengths, lengths, lengths * lengths, weights * weights)
    per_token = variance_per_token(weights, layout)
    ratio = gaussian_ratio(moments, n)
    slope = (
        growth.slope
        if growth is not None
        else Estimate(None, None, None, n, "sequences are too short or too few")
    )
    exact = not np.any(weights)
    horizon, low, high, reason = _within(
        MAX_STRETCH * float(lengths.max()), *_horizon(per_token, slope, float(lengths.mean()), exact)
    )
    return LengthLaw(
        kappa=kappa,
        variance_per_token=per_token,
        gaussian_ratio=ratio,
        slope=slope,
        variance_time=growth,
        horizon_tokens=horizon,
        horizon_low=low,
        horizon_high=high,
        horizon_from_kappa=math.log(1.0 / HORIZON_ESS) / (2.0 * kappa_value)
        if kappa.ci_low is not None and kappa.ci_low > 0.0
        else None,
        buckets=_buckets(weights, layout, kappa_value, num_buckets),
        mean_length=float(lengths.mean()),
        max_length=int(lengths.max()),
        num_sequences=n,
        exact=exact,
        horizon_reason=reason,
    )


def gaussian_ratio(moments: FloatArray, n: int) -> Estimate:
    """G = variance of log W around -kappa T over -2 x mean log W, with an interval over prompts.

    The interval is that of 1 / G, whose denominator is stable, turned round: while the mean of log W is not
    measurably below 0 it has a lower end but no upper one.

    Args:
        moments: [prompts, 6] sums of `length_moments`.
        n: Sequences.

    Returns:
        A value where the mean of log W is negative; else null with the reason.
    """
    total = moments.sum(axis=0)
    if total[4] == 0.0:
        return Estimate(None, None, None, n, "every log-weight is 0")
    if n < 2:
        return Estimate(None, None, None, n, "one sequence has no spread")
    if total[0] >= 0.0:
        return Estimate(
            None, None, None, n, "the mean of log W is not negative: there is no drift to compare with"
        )
    variance = variance_of_moments(n)
    inverse = interval_from_table(
        moments, Statistic(lambda sums: np.asarray(-2.0 * sums[..., 0] / sums[..., 2] / variance(sums))), n=n
    )
    if inverse.value is None:
        return Estimate(None, None, None, n, inverse.reason)
    value = 1.0 / inverse.value
    if inverse.ci_low is None or inverse.ci_high is None:
        return Estimate(value, None, None, n, inverse.reason)
    if inverse.ci_low > 0.0:
        return Estimate(value, 1.0 / inverse.ci_high, 1.0 / inverse.ci_low, n)
    reason = "the mean of log W is not measurably below 0: there is no upper end"
    return Estimate(value, 1.0 / inverse.ci_high, None, n, reason)


def _growth(slope: Estimate) -> float:
    if slope.value is None or slope.ci_low is None or slope.ci_high is None:
        return 1.0
    return 1.0 if slope.ci_low <= 1.0 <= slope.ci_high else slope.value


def _horizon(
    per_token: Estimate, slope: Estimate, mean_length: float, exact: bool
) -> tuple[float | None, float | None, float | None, str | None]:
    if exact or not per_token.value:
        return (
            None,
            None,
            None,
            "every log-weight is 0: no length is too long" if exact else "log W does not vary",
        )
    target = math.log(1.0 / HORIZON_ESS)

    def at(variance: float, growth: float) -> float:
        return float(mean_length * (target / (variance * mean_length)) ** (1.0 / max(growth, 0.1)))

    value = at(per_token.value, _growth(slope))
    if per_token.ci_low is None or per_token.ci_high is None:
        return value, None, None, None
    ends = [1.0, *(v for v in (slope.ci_low, slope.ci_high) if v is not None)]
    reach = [at(v, g) for v in (per_token.ci_low, per_token.ci_high) for g in ends if v > 0]
    return value, min(reach), max(reach), None


def _within(
    limit: float, value: float | None, low: float | None, high: float | None, reason: str | None
) -> tuple[float | None, float | None, float | None, str | None]:
    """A horizon beyond the limit is not given as a number: only that it is not before the limit, or its lower end."""
    low = None if low is None else min(low, limit)
    high = None if high is None or high > limit else high
    if value is not None and value > limit:
        reason = f"beyond {limit:.0f} tokens, {MAX_STRETCH:.0f} times the longest sequence: farther than the data carry"
        value = None
    return value, low, high, reason


def _buckets(
    weights: FloatArray, layout: SequenceLayout, kappa: float, wanted: int
) -> tuple[LengthBucket, ...]:
    lengths = layout.lengths
    count = max(1, min(wanted, lengths.size // 5))
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, count + 1), method="inverted_cdf"))
    place = np.clip(np.searchsorted(edges, lengths, side="left") - 1, 0, max(edges.size - 2, 0))
    result = []
    for index in np.unique(place):
        members = place == index
        w, t = weights[members], lengths[members].astype(np.float64)
        moments = np.column_stack([w, w * t, t, t * t, w * w, np.ones_like(w)])
        clusters = layout.cluster_index[members]
        table = np.zeros((int(clusters.max()) + 1, moments.shape[1]))
        np.add.at(table, clusters, moments)
        result.append(
            LengthBucket(
                low=int(t.min()),
                high=int(t.max()),
                n=int(w.size),
                mean_length=float(t.mean()),
                mean_log_weight=float(w.mean()),
                variance=float(np.square(w + kappa * t).mean()),
                gaussian_ratio=gaussian_ratio(table[table[:, -1] > 0], int(w.size)),
            )
        )
    return tuple(result)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    if estimate.value is None:
        return estimate
    ends = [None if end is None else end * factor for end in (estimate.ci_low, estimate.ci_high)]
    if factor < 0:
        ends.reverse()
    return Estimate(estimate.value * factor, ends[0], ends[1], estimate.n, estimate.reason)
