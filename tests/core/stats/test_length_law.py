import itertools
import math

import numpy as np
import pytest

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats import length_law, variance_time


def _sequences(rng, prompts, samples, lengths, sd, persistence=0.0):
    size = prompts * samples
    t = rng.choice(lengths, size)
    offsets = np.concatenate([[0], np.cumsum(t)])
    noise = rng.normal(size=offsets[-1])
    if persistence:
        for start, stop in itertools.pairwise(offsets):
            for i in range(start + 1, stop):
                noise[i] = persistence * noise[i - 1] + math.sqrt(1 - persistence**2) * noise[i]
    log_ratio = sd * noise - sd**2 / 2
    return log_ratio, t, np.repeat(np.arange(prompts), samples), np.add.reduceat(log_ratio, offsets[:-1])


def test_variance_time_matches_exact_values(suites, check_case):
    for case in suites["variance_time"]["cases"]:
        got = variance_time(case["args"]["x"], (1, 2, 4, 8, 16))
        for size, variance in zip(got.block_sizes, got.variances, strict=True):
            check_case(case, str(size), variance)
        check_case(case, "slope_2H", got.slope.value)


def test_variance_time_needs_two_sizes():
    with pytest.raises(ConfigError):
        variance_time([1.0, 2.0, 3.0], (1, 2))


def test_gaussian_martingale_is_recovered():
    rng = np.random.default_rng(0)
    log_ratio, t, clusters, log_weight = _sequences(rng, 64, 8, [200, 400, 800], 0.05)
    law = length_law(log_weight, t, clusters, log_ratio=log_ratio)
    assert law.kappa.ci_low < 0.00125 < law.kappa.ci_high
    assert law.variance_per_token.ci_low < 0.0025 < law.variance_per_token.ci_high
    assert law.gaussian_ratio.ci_low < 1.0 < law.gaussian_ratio.ci_high
    assert law.slope.ci_low < 1.0 < law.slope.ci_high
    assert law.horizon_low < math.log(10) / 0.0025 < law.horizon_high
    assert law.horizon_from_kappa == pytest.approx(math.log(10) / 0.0025, rel=0.3)
    assert [bucket.mean_length for bucket in law.buckets] == sorted(b.mean_length for b in law.buckets)
    assert sum(bucket.n for bucket in law.buckets) == 512
    near, far = law.extrapolate(800), law.extrapolate(4000)
    assert near.ess.ci_low < math.exp(-2.0) < near.ess.ci_high
    assert far.variance.ci_low < 10.0 < far.variance.ci_high
    spread = [(e.variance.ci_high - e.variance.ci_low) / e.variance.value for e in (near, far)]
    assert spread[1] > spread[0]


def test_persistent_errors_bend_the_slope_and_shorten_the_horizon():
    rng = np.random.default_rng(1)
    log_ratio, t, clusters, log_weight = _sequences(rng, 24, 4, [300, 600], 0.03, persistence=0.97)
    law = length_law(log_weight, t, clusters, log_ratio=log_ratio)
    assert law.slope.ci_low > 1.1
    assert law.gaussian_ratio.value > 10
    assert law.horizon_tokens < 0.1 * math.log(10) / 0.03**2
    assert law.horizon_from_kappa is None  # kappa is not measurably above 0
    assert "Gaussian martingale" in law.extrapolate(600).reason
    assert law.extrapolate(600).variance.value is not None


def test_equal_lengths_give_the_plain_ratio():
    rng = np.random.default_rng(2)
    log_weight = rng.normal(-0.5, 1.0, 200)
    law = length_law(log_weight, np.full(200, 100), np.arange(200))
    assert law.gaussian_ratio.value == pytest.approx(log_weight.var(ddof=1) / (-2 * log_weight.mean()))
    assert law.slope.value is None
    assert law.slope.reason


def test_refusals_name_their_reason():
    rng = np.random.default_rng(3)
    log_weight = rng.normal(-0.5, 1.0, 40)
    few = length_law(log_weight, np.full(40, 100), np.arange(40) % 3)
    assert "kappa has no interval" in few.extrapolate(100).reason
    many = length_law(log_weight, np.full(40, 100), np.arange(40))
    assert "growth of the variance" in many.extrapolate(200).reason
    assert "8 times" in many.extrapolate(801).reason
    with pytest.raises(ConfigError):
        many.extrapolate(0)


def test_exact_and_single_sequences():
    exact = length_law(np.zeros(20), np.arange(20) + 1, np.arange(20))
    assert exact.exact
    assert exact.extrapolate(10**6).ess.value == 1.0
    assert exact.horizon_tokens is None
    assert "0" in exact.horizon_reason
    single = length_law([0.5], [10], [0])
    assert single.variance_per_token.value is None
    with pytest.raises(InconclusiveError):
        length_law([0.0, 0.0], [0, 0], [0, 1])


def test_empty_sequences_are_left_out():
    whole = length_law([0.1, 0.0, -0.4], [3, 0, 5], [0, 1, 2])
    part = length_law([0.1, -0.4], [3, 5], [0, 2])
    assert whole == part


def test_a_horizon_beyond_what_the_data_carry_is_not_a_number():
    rng = np.random.default_rng(5)
    lengths = rng.integers(20, 60, 200)
    tokens = 0.001 * rng.normal(size=lengths.sum()) - 5e-7
    ends = np.cumsum(lengths)
    sums = np.add.reduceat(tokens, np.concatenate([[0], ends[:-1]]))
    law = length_law(sums, lengths, np.arange(200) // 4, log_ratio=tokens)
    assert law.horizon_tokens is None
    assert law.horizon_high is None
    assert law.horizon_low == 8 * lengths.max()
    assert "farther than the data carry" in law.horizon_reason
    assert law.extrapolate(8 * int(lengths.max()) + 1).reason is not None
