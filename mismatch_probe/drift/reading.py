"""What a profile promises to return: the quantities that are measured on a run, and again after injecting."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mismatch_probe.errors import InconclusiveError
from mismatch_probe.stats.clusters import design_effect
from mismatch_probe.stats.dependence import block_slope, block_sums, largest_block
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.layout import BoolArray, FloatArray, IntArray, SequenceLayout
from mismatch_probe.stats.length_law import length_law
from mismatch_probe.stats.means import token_mean_ratio
from mismatch_probe.stats.pareto import pareto_k
from mismatch_probe.stats.tails import rate_estimate

LEVELS = (0.001, 0.01, 0.05, 0.95, 0.99, 0.999)
MIN_BEYOND = 5
_NORMAL = 1.959963984540054


@dataclass(frozen=True, slots=True)
class TailQuantile:
    """A quantile of the log-ratio over tokens that no routing flip predicted.

    Attributes:
        level: Share of these tokens at or below it.
        log_ratio: Nats, with an interval over prompts.
    """

    level: float
    log_ratio: Estimate


@dataclass(frozen=True, slots=True)
class DriftReading:
    """Drift of a set of responses; every interval is 95 %, over prompts.

    Attributes:
        num_tokens: Response tokens.
        num_sequences: Sequences with tokens.
        mean_length: Tokens.
        max_length: Tokens.
        kappa: -sum log W / sum T, nats per token.
        variance_per_token: Of log W about -kappa T, nats^2 per token.
        gaussian_ratio: G, that variance over 2 kappa.
        slope: 2H, how the variance of block sums grows; 1 for independent errors.
        k_hat: Pareto k of the sequence weights, with the interval of a fitted generalised Pareto shape.
        mean_ratio: Mean over tokens of pi / mu, 1 in expectation.
        flip_rate: Share of response tokens predicted where at least one layer chose other experts.
        tail: Quantiles over tokens without a flip.
    """

    num_tokens: int
    num_sequences: int
    mean_length: float
    max_length: int
    kappa: Estimate
    variance_per_token: Estimate
    gaussian_ratio: Estimate
    slope: Estimate
    k_hat: Estimate
    mean_ratio: Estimate
    flip_rate: Estimate
    tail: tuple[TailQuantile, ...]

    def estimates(self) -> dict[str, Estimate]:
        """Every estimate by name; quantiles as `tail[LEVEL]`."""
        named = {
            name: getattr(self, name)
            for name in (
                "kappa",
                "variance_per_token",
                "gaussian_ratio",
                "slope",
                "k_hat",
                "mean_ratio",
                "flip_rate",
            )
        }
        return named | {f"tail[{row.level:g}]": row.log_ratio for row in self.tail}


def read_drift(
    log_ratio: FloatArray, layout: SequenceLayout, flipped: BoolArray | None = None, *, flip_reason: str = ""
) -> DriftReading:
    """Measures what a profile promises.

    Args:
        log_ratio: float64 [tokens], finite, nats.
        layout: Sequences and prompts.
        flipped: bool [tokens] whether a flip predicted the token; None where that is not known or cannot be.
        flip_reason: Why it is None.

    Raises:
        InconclusiveError: There are no tokens.
    """
    if not log_ratio.size:
        raise InconclusiveError("no response token: there is no drift to read")
    log_weight = layout.sequence_sums(log_ratio)
    law = length_law(log_weight, layout.lengths, layout.clusters, log_ratio=log_ratio)
    calm = np.ones(log_ratio.size, dtype=np.bool_) if flipped is None else ~flipped
    flip_rate = (
        Estimate(None, None, None, log_ratio.size, flip_reason or "routes were not compared")
        if flipped is None
        else rate_estimate(flipped, layout.token_cluster)
    )
    return DriftReading(
        num_tokens=log_ratio.size,
        num_sequences=law.num_sequences,
        mean_length=law.mean_length,
        max_length=law.max_length,
        kappa=law.kappa,
        variance_per_token=law.variance_per_token,
        gaussian_ratio=law.gaussian_ratio,
        slope=law.slope,
        k_hat=sequence_k_hat(log_ratio, layout),
        mean_ratio=token_mean_ratio(log_ratio, layout),
        flip_rate=flip_rate,
        tail=tuple(
            TailQuantile(level, _quantile(log_ratio[calm], layout.token_cluster[calm], level))
            for level in LEVELS
        ),
    )


def drift_values(
    log_ratio: FloatArray, layout: SequenceLayout, flipped: BoolArray | None = None
) -> dict[str, float | None]:
    """The values of `read_drift` by name, without intervals and thus in a fraction of its time.

    Args:
        log_ratio: float64 [tokens], finite, nats.
        layout: Sequences and prompts.
        flipped: bool [tokens], or None.
    """
    log_weight = layout.sequence_sums(log_ratio)
    # All sequences under one prompt: the same sums, and nothing to resample.
    law = length_law(log_weight, layout.lengths, np.zeros(log_weight.size, dtype=np.int64), num_buckets=1)
    calm = log_ratio if flipped is None else log_ratio[~flipped]
    largest = largest_block(layout.lengths, layout.cluster_index)
    slope = None if largest == 0 else block_slope(block_sums(log_ratio, layout, largest).sum(axis=0))
    values = {
        "kappa": law.kappa.value,
        "variance_per_token": law.variance_per_token.value,
        "gaussian_ratio": law.gaussian_ratio.value,
        "slope": slope,
        "k_hat": sequence_k_hat(log_ratio, layout).value,
        "mean_ratio": float(np.exp(log_ratio).mean()),
        "flip_rate": None if flipped is None else float(flipped.mean()),
    }
    return values | {
        f"tail[{level:g}]": None
        if calm.size * min(level, 1.0 - level) < MIN_BEYOND
        else float(np.quantile(calm, level, method="hazen"))
        for level in LEVELS
    }


def inside(measured: Estimate, again: Estimate) -> bool | None:
    """Whether a second measurement lies in the first one's interval.

    Returns:
        None where the first has no interval at all; False where the second has no value. An interval with one end
        is open at the other.
    """
    if measured.value is None or (measured.ci_low is None and measured.ci_high is None):
        return None
    if again.value is None:
        return False
    low = -math.inf if measured.ci_low is None else measured.ci_low
    high = math.inf if measured.ci_high is None else measured.ci_high
    return low <= again.value <= high


def sequence_k_hat(log_ratio: FloatArray, layout: SequenceLayout) -> Estimate:
    """Pareto k of the sequence weights with the interval of a fitted shape.

    The variance of a shape is (1 + k)^2 / tail entries (Smith, Biometrika 1987), here times the design effect of prompts
    and shrunk by the prior as the shape is.

    Args:
        log_ratio: float64 [tokens], nats.
        layout: Sequences and prompts.
    """
    filled = layout.lengths > 0
    log_weight, prompts = layout.sequence_sums(log_ratio)[filled], layout.cluster_index[filled]
    effect = max(design_effect(log_weight, prompts) or 1.0, 1.0)
    fit = pareto_k(log_weight, r_eff=1.0 / effect)
    if fit.value is None or fit.value_before_prior is None:
        return Estimate(None, None, None, fit.n, fit.reason)
    error = (1.0 + max(fit.value_before_prior, -0.5)) * math.sqrt(effect / fit.tail_size)
    half = _NORMAL * error * fit.tail_size / (fit.tail_size + 10.0)
    return Estimate(fit.value, fit.value - half, fit.value + half, fit.n)


def _quantile(values: FloatArray, prompts: IntArray, level: float) -> Estimate:
    """A quantile and the interval of the share beyond it, read back as quantiles (Woodruff, JASA 1952)."""
    n, outer = values.size, min(level, 1.0 - level)
    if n * outer < MIN_BEYOND:
        return Estimate(None, None, None, n, f"fewer than {MIN_BEYOND} of {n} tokens lie beyond this level")
    value = float(np.quantile(values, level, method="hazen"))
    share = rate_estimate(values <= value if level < 0.5 else values >= value, prompts)
    if share.ci_low is None or share.ci_high is None:
        return Estimate(value, None, None, n, share.reason)
    wide = (share.ci_low, share.ci_high) if level < 0.5 else (1.0 - share.ci_high, 1.0 - share.ci_low)
    # Ties (many log-ratios are exactly 0) make the share beyond the value larger than the level: keep it inside.
    low, high = np.quantile(values, [min(wide[0], level), max(wide[1], level)], method="hazen")
    return Estimate(value, float(low), float(high), n)
