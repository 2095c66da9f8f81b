"""Are both sides normalised laws of the same sampling? MP104, MP106, MP107, MP111."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mismatch_probe.stats.divergences import log_complement
from mismatch_probe.stats.kl import token_k3
from mismatch_probe.stats.layout import BoolArray, FloatArray, SequenceLayout
from mismatch_probe.stats.validity.check import (
    MIN_TEST_CLUSTERS,
    Check,
    ClusteredMean,
    clustered_mean,
    not_run,
)

MEAN_FLOOR = 1e-5
MASS_FLOOR = 1e-3
TEMPERATURE_BAR = 0.03
MIN_TEMPERATURE_TOKENS = 200
LOG_ODDS_RANGE = (-3.0, 9.0)
ENTROPY_BAR = 0.05
K3_CAP = 3.0
LARGEST_RATIO = 50.0


def check_mean_sign(log_ratio: FloatArray, layout: SequenceLayout) -> Check:
    """MP104: neither the mean log-ratio is above 0 nor the mean ratio above 1.

    For any two laws E_mu[log pi - log mu] = -KL(mu || pi) <= 0, and E_mu[pi / mu] <= 1: either one
    significantly above proves a bug (sides swapped, wrong temperature, shifted tokens, other ids, a law that
    is not normalised). One-sided t over prompts at 0.001 each; the mean log-ratio must also exceed 1e-5 nats
    and the mean ratio 1.001, which rounding of the normaliser alone can reach. Of the two the mean ratio has
    twice the power against swapped sides. `observed` is the mean log-ratio, or the mean ratio minus 1 where
    only that one fails.
    """
    name = "mean log-ratio not positive"
    if (why := _too_few(layout)) is not None:
        return not_run("MP104", name, why)
    mean = clustered_mean(log_ratio, layout)
    bar = max(mean.critical(), MEAN_FLOOR)
    detail = (
        f"mean log-ratio {mean.mean:.3g} nats, standard error {mean.error:.2g}, {mean.num_clusters} prompts"
    )
    if mean.mean > bar:
        return Check("MP104", name, "fail", mean.mean, bar, detail)
    if float(log_ratio.max()) <= LARGEST_RATIO:
        excess = clustered_mean(np.expm1(log_ratio), layout)
        excess_bar = max(excess.critical(), MASS_FLOOR)
        if excess.mean > excess_bar:
            detail += f"; the mean ratio is {1.0 + excess.mean:.5f}, where no two laws exceed 1"
            return Check("MP104", name, "fail", excess.mean, excess_bar, detail)
    return Check("MP104", name, "pass", mean.mean, bar, detail)


@dataclass(frozen=True, slots=True)
class TemperatureRatio:
    """Ratio of the sides' temperatures as seen in the log-odds of the sampled tokens.

    Attributes:
        value: Rollout temperature over training temperature.
        low: Lower end at the test's level.
        high: Upper end.
        bar: How far from 1 counts as a mismatch, from the noise on the log-odds.
        num_tokens: Tokens whose log-odds carry it.
    """

    value: float
    low: float
    high: float
    bar: float
    num_tokens: int


def temperature_ratio(
    train_logprobs: FloatArray, rollout_logprobs: FloatArray, layout: SequenceLayout
) -> TemperatureRatio | None:
    """Estimates the ratio of temperatures.

    A temperature divides logits, so that the log-odds of a token against all others move T times as far with
    its own logit on the side with temperature 1. With d = logit p - logit q and m their mean, the slope b of
    d on m gives T_rollout / T_train = (2 + b) / (2 - b); regressing on the mean of both sides keeps noise
    that is equal on both from bending the line. Only tokens with m in [-3, 9]: beyond, float32
    log-probabilities do not resolve 1 - p.

    Returns:
        None with fewer than 200 such tokens or 4 prompts, or where m does not vary.
    """
    displacement, middle, used = _log_odds(train_logprobs, rollout_logprobs)
    table = np.column_stack([middle, displacement, middle**2, middle * displacement])[used]
    clusters = layout.token_cluster[used]
    if clusters.size < MIN_TEMPERATURE_TOKENS:
        return None
    columns = [*table.T, np.ones(clusters.size)]
    sums = np.column_stack([np.bincount(clusters, weights=c, minlength=layout.num_clusters) for c in columns])
    sums = sums[sums[:, -1] > 0]
    if sums.shape[0] < MIN_TEST_CLUSTERS:
        return None
    total = sums.sum(axis=0)
    variance = total[2] / total[4] - (total[0] / total[4]) ** 2
    if variance <= 1e-6:
        return None
    slope = float(_slope(total))
    left_out = _slope(total - sums)
    groups = sums.shape[0]
    error = math.sqrt((groups - 1) / groups * float(np.square(left_out - left_out.mean()).sum()))
    reach = ClusteredMean(slope, error, groups).critical()
    residual = displacement[used] - slope * middle[used]
    # Noise of variance v on the log-odds of one side alone bends the slope by up to about v over the variance
    # of m.
    bar = max(TEMPERATURE_BAR, 2.0 * float(np.var(residual)) / float(variance))
    return TemperatureRatio(
        value=_ratio_of(slope),
        low=_ratio_of(slope - reach),
        high=_ratio_of(slope + reach),
        bar=bar,
        num_tokens=int(clusters.size),
    )


def _log_odds(
    train_logprobs: FloatArray, rollout_logprobs: FloatArray
) -> tuple[FloatArray, FloatArray, BoolArray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = (side - log_complement(np.minimum(side, 0.0)) for side in (train_logprobs, rollout_logprobs))
        displacement, middle = p - q, 0.5 * (p + q)
        used = np.isfinite(displacement) & (middle > LOG_ODDS_RANGE[0]) & (middle < LOG_ODDS_RANGE[1])
    return displacement, middle, used


def _slope(sums: FloatArray) -> FloatArray:
    m, d, mm, md, n = (sums[..., i] for i in range(5))
    return np.asarray((md - m * d / n) / (mm - m * m / n))


def _ratio_of(slope: float) -> float:
    bounded = min(max(slope, -1.98), 1.98)
    return (2.0 + bounded) / (2.0 - bounded)


def check_temperature(
    train_logprobs: FloatArray, rollout_logprobs: FloatArray, layout: SequenceLayout
) -> Check:
    """MP106: both sides apply the same temperature.

    Fails where the estimated ratio is further from 1 than 3 % (more on noisy data), its 99.9 % interval
    excludes 1, and the mean log-ratio changes sign between the likelier and the less likely half of the
    tokens: a temperature moves mass from one to the other, while a cut-off support lowers all log-ratios. The
    estimate is a diagnosis, not a
    measurement: it is biased towards 1, by about a tenth of the deviation.
    """
    name = "one temperature on both sides"
    ratio = temperature_ratio(train_logprobs, rollout_logprobs, layout)
    if ratio is None:
        why = f"needs {MIN_TEMPERATURE_TOKENS} tokens of middling probability, {MIN_TEST_CLUSTERS} prompts"
        return not_run("MP106", name, why)
    likely, unlikely = _mean_at_ends(train_logprobs, rollout_logprobs)
    crosses = likely < 0.0 < unlikely if ratio.value < 1.0 else unlikely < 0.0 < likely
    far = abs(math.log(ratio.value)) > ratio.bar and not ratio.low <= 1.0 <= ratio.high
    detail = (
        f"rollout temperature over training temperature looks like {ratio.value:.3f}"
        f" [{ratio.low:.3f}, {ratio.high:.3f}] from {ratio.num_tokens} tokens"
    )
    return Check("MP106", name, "fail" if far and crosses else "pass", ratio.value, 1.0 + ratio.bar, detail)


def _mean_at_ends(train_logprobs: FloatArray, rollout_logprobs: FloatArray) -> tuple[float, float]:
    """Mean log-ratio of the likeliest half and of the least likely tenth, by both sides together."""
    middle = train_logprobs + rollout_logprobs
    order = np.argsort(middle, kind="stable")
    log_ratio = (train_logprobs - rollout_logprobs)[order]
    return float(log_ratio[order.size // 2 :].mean()), float(log_ratio[: max(order.size // 10, 1)].mean())


def check_support(train_logprobs: FloatArray, rollout_logprobs: FloatArray, layout: SequenceLayout) -> Check:
    """MP107: the rollout law is not cut off (top-p, top-k, min-p) where the training law is not.

    A truncated and renormalised rollout law has E_mu[rho] = training mass of the kept tokens < 1, and
    log-ratios on one side. Fails where 1 - mean rho exceeds its one-sided t bound (0.001 over prompts),
    0.001, and what three unseen tokens as large as the largest |log-ratio| would fill (a sample mean of
    heavy-tailed ratios is too low as a rule), and most log-ratios are negative. Fails too where more than 0.2
    % of the tokens, and 5 of them from 2 prompts, have rollout probability exactly 1 and a training
    probability between 0.4 and 0.999: a cut that kept one token. `observed` estimates the lost mass.
    """
    name = "untruncated rollout support"
    if (why := _too_few(layout)) is not None:
        return not_run("MP107", name, why)
    log_ratio = train_logprobs - rollout_logprobs
    largest = float(np.abs(log_ratio).max())
    if largest > LARGEST_RATIO:
        return not_run("MP107", name, f"a log-ratio of {largest:.0f} nats swamps the mean ratio")
    mean = clustered_mean(np.expm1(log_ratio), layout)
    lost = -mean.mean
    bar = max(mean.critical(), MASS_FLOOR) + 3.0 * math.expm1(largest) / log_ratio.size
    moved = log_ratio[log_ratio != 0.0]
    negative = float(np.mean(moved < 0.0)) if moved.size else 0.0
    one_sided = negative > 0.55 + min(0.25, 0.25 * float(log_ratio.std()))
    alone = (rollout_logprobs == 0.0) & (train_logprobs < -1e-3) & (train_logprobs > -0.9)
    num_alone = int(np.count_nonzero(alone))
    certain = num_alone >= max(5, 0.002 * log_ratio.size) and np.unique(layout.token_cluster[alone]).size >= 2
    detail = (
        f"mean ratio {1.0 - lost:.5f}; {negative:.0%} of the log-ratios that differ are negative;"
        f" {num_alone} tokens were certain in the rollout only"
    )
    failed = (lost > bar and one_sided) or certain
    return Check("MP107", name, "fail" if failed else "pass", lost, bar, detail)


def check_sampled_law(
    log_ratio: FloatArray, train_logprobs: FloatArray, layout: SequenceLayout, entropy: FloatArray | None
) -> Check:
    """MP111: the tokens were drawn from the law that was logged (raw and processed are not mixed up).

    The log-probability of a token drawn from p averages to minus the entropy of p. Raw log-probabilities
    logged while sampling with a temperature or a cut agree between the sides but not with the draw: mean(log
    p) + mean(H) leaves 0 while the mean ratio stays near 1. Fails beyond 5 % of the mean entropy (plus twice
    the drift) and its t bound at 0.001 on each side. Not run without entropies: log-probabilities of sampled
    tokens alone show the mix-up in second order only.
    """
    name = "sampled from the logged law"
    if entropy is None:
        return not_run("MP111", name, "needs the entropy of the training law at each token")
    if (why := _too_few(layout)) is not None:
        return not_run("MP111", name, why)
    surplus = clustered_mean(train_logprobs + entropy, layout)
    level = float(entropy.mean())
    # Drift alone, in two laws that both hold, lowers the mean by about its KL divergence.
    drift = 2.0 * float(np.minimum(token_k3(log_ratio), K3_CAP).mean())
    bar = max(surplus.critical(), ENTROPY_BAR * level + drift, 1e-3)
    detail = f"log p of the sampled tokens is {surplus.mean:+.3g} nats from minus the entropy {level:.3g}"
    failed = abs(surplus.mean) > bar
    return Check("MP111", name, "fail" if failed else "pass", surplus.mean, bar, detail)


def _too_few(layout: SequenceLayout) -> str | None:
    with_tokens = int(np.unique(layout.cluster_index[layout.lengths > 0]).size)
    if with_tokens < MIN_TEST_CLUSTERS:
        return f"{with_tokens} prompts with tokens; the test needs {MIN_TEST_CLUSTERS}"
    return None
