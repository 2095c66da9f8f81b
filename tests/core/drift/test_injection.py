"""Injecting a profile gives back what it was measured on, and never anything that is no log-probability."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mismatch_probe.drift import inside, read_drift
from mismatch_probe.drift.reading import drift_values
from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.estimate import Estimate

REPEATS = 200
# Of 200 that each hold with 95 %, 182 or fewer happen by chance in 1 %.
AT_LEAST = 183


def test_measuring_again_comes_back(planted):
    """Every number of the profile, in 95 % of injections."""
    layout, held = planted.layout, dict.fromkeys(planted.profile.returns, 0)
    assert {"kappa", "gaussian_ratio", "k_hat", "slope", "flip_rate", "tail[0.001]", "tail[0.999]"} <= set(
        held
    )
    for seed in range(REPEATS):
        injected = planted.profile.inject(
            planted.rollout, layout.offsets, prompt_ids=layout.clusters, seed=seed
        )
        again = drift_values(injected.log_ratio, layout, injected.flipped)
        for name, interval in planted.profile.returns.items():
            held[name] += interval.holds(Estimate(again[name], None, None, 0))
    assert min(held.values()) >= AT_LEAST, held


def test_what_comes_back_is_what_was_measured(planted):
    """The return interval is hardly wider than the confidence interval, and the middle of injections lies in the latter."""
    layout, measured = planted.layout, planted.profile.measured.estimates()
    drawn = []
    for seed in range(40):
        injected = planted.profile.inject(
            planted.rollout, layout.offsets, prompt_ids=layout.clusters, seed=seed
        )
        drawn.append(drift_values(injected.log_ratio, layout, injected.flipped))
    for name, interval in planted.profile.returns.items():
        low, high = measured[name].ci_low, measured[name].ci_high
        assert low <= np.median([row[name] for row in drawn]) <= high, name
        # The interval of G may be open above.
        if interval.high is not None:
            assert interval.high - interval.low <= 1.6 * (high - low), name


def test_fast_values_are_those_of_the_reading(planted):
    reading = read_drift(planted.train - planted.rollout, planted.layout, planted.flipped)
    fast = drift_values(planted.train - planted.rollout, planted.layout, planted.flipped)
    for name, estimate in reading.estimates().items():
        assert fast[name] == pytest.approx(estimate.value, rel=1e-9), name
    assert planted.profile.returned(reading) == dict.fromkeys(planted.profile.returns, True)


def test_another_drift_is_outside_the_intervals(planted):
    """The intervals are narrow enough to tell drift of one and a half times the size apart."""
    measured = planted.profile.measured.estimates()
    log_ratio = 1.5 * (planted.train - planted.rollout)
    again = read_drift(log_ratio, planted.layout, planted.flipped).estimates()
    for name in ("variance_per_token", "tail[0.01]", "tail[0.99]"):
        assert inside(measured[name], again[name]) is False, name


def test_sequences_keep_their_unlike_scales(planted):
    """Sizes of two halves of a sequence correlate in the run and in the injection, and not without dependence."""
    layout = planted.layout
    injected = planted.profile.inject(planted.rollout, layout.offsets, prompt_ids=layout.clusters, seed=5)
    first = layout.token_position < layout.lengths[layout.token_sequence] // 2

    def correlation(log_ratio):
        size = np.log(np.abs(log_ratio / -np.expm1(planted.rollout)) + 1e-3)
        halves = [np.bincount(layout.token_sequence[side], weights=size[side]) for side in (first, ~first)]
        counts = [np.bincount(layout.token_sequence[side]) for side in (first, ~first)]
        return np.corrcoef(halves[0] / counts[0], halves[1] / counts[1])[0, 1]

    measured, again = correlation(planted.train - planted.rollout), correlation(injected.log_ratio)
    shuffled = correlation(np.random.default_rng(0).permutation(injected.log_ratio))
    assert measured > 0.3
    assert abs(again - measured) < 0.2
    assert abs(shuffled) < 0.2 < again


def test_the_mean_ratio_is_the_measured_one(planted):
    again = [
        planted.profile.inject(planted.rollout, planted.layout.offsets, seed=seed).mean_ratio
        for seed in range(20)
    ]
    measured = np.exp(planted.train - planted.rollout).mean()
    assert abs(np.mean(again) - measured) < 1e-3
    assert abs(np.mean(again) - 1.0) < 2e-3


@settings(max_examples=30, deadline=None)
@given(
    logprobs=st.lists(st.floats(-700.0, 0.0), min_size=1, max_size=30),
    cuts=st.integers(0, 30),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_rollout_gives_log_probabilities(planted, logprobs, cuts, seed):
    offsets = [0, min(cuts, len(logprobs)), len(logprobs)]
    injected = planted.profile.inject(logprobs, offsets, seed=seed)
    assert np.all(np.isfinite(injected.train_logprobs))
    assert np.all(injected.train_logprobs <= 0.0)
    np.testing.assert_allclose(injected.train_logprobs - np.array(logprobs), injected.log_ratio, atol=1e-11)
    assert injected.num_certain == sum(v >= -1e-12 for v in logprobs)
    assert injected.num_beyond == sum(v < planted.profile.law.least_logprob for v in logprobs)
    same = planted.profile.inject(logprobs, offsets, seed=seed)
    np.testing.assert_array_equal(same.train_logprobs, injected.train_logprobs)


def test_padded_rows_are_drawn_as_flat_ones(planted):
    rows = np.full((2, 5), -0.7)
    mask = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0]], dtype=bool)
    padded = planted.profile.inject(rows, mask=mask, seed=4)
    flat = planted.profile.inject(np.full(5, -0.7), [0, 2, 5], seed=4)
    np.testing.assert_array_equal(padded.train_logprobs[mask], flat.train_logprobs)
    np.testing.assert_array_equal(padded.train_logprobs[~mask], rows[~mask])
    assert not padded.log_ratio[~mask].any()
    assert not padded.flipped[~mask].any()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([-1.0], [0, 2]), ConfigError),
        (([-1.0, 0.5], [0, 2]), ConfigError),
        (([-1.0, float("nan")], [0, 2]), InconclusiveError),
        (([-1.0],), ConfigError),
    ],
)
def test_what_does_not_fit_is_refused(planted, arguments, error):
    with pytest.raises(error):
        planted.profile.inject(*arguments)
