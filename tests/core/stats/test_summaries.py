import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats import (
    covariance_of_steps,
    kl_estimates,
    summarise_sequences,
    summarise_step,
    summarise_tokens,
)


def _plain(result):
    """As strict JSON: fails on NaN, infinity and numpy scalars."""
    return json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))


def _all_summaries(train, rollout, offsets, clusters):
    log_ratio = train - rollout
    yield summarise_tokens(log_ratio, rollout, train, offsets, clusters)
    yield summarise_sequences(log_ratio, offsets, clusters)
    yield summarise_step(log_ratio, offsets, clusters)


def test_summaries_hold_what_was_planted(planted):
    train, rollout, offsets, clusters = planted(prompts=40, samples=4, length=100, variance=2e-3)
    tokens, sequences, step = _all_summaries(train, rollout, offsets, clusters)
    plain = kl_estimates(train - rollout)
    assert tokens.k3.value == pytest.approx(plain.k3)
    assert tokens.k1.value == pytest.approx(plain.k1)
    assert tokens.k3.ci_low < 1e-3 < tokens.k3.ci_high
    assert tokens.mean_ratio.ci_low < 1.0 < tokens.mean_ratio.ci_high
    assert tokens.chi2.ci_low < np.expm1(2e-3) < tokens.chi2.ci_high
    assert tokens.mean_log_ratio.value == -tokens.k1.value
    assert sequences.k_hat.state == "value"
    assert sequences.ess.ci_low < sequences.ess.value < sequences.ess.ci_high
    log_weight = np.add.reduceat(train - rollout, offsets[:-1])
    weight = np.exp(log_weight)
    assert sequences.ess.value == pytest.approx(weight.sum() ** 2 / (weight @ weight) / weight.size)
    assert sequences.log_weight.std.value == pytest.approx(log_weight.std(ddof=1))
    assert sequences.log_weight.mean.value == pytest.approx(log_weight.mean())
    assert sequences.chi2.value == pytest.approx(np.mean(weight**2) - 1)
    assert sequences.mean_weight.value == pytest.approx(weight.mean())
    assert sum(sequences.histogram.counts) == weight.size
    assert step.sequence_std == pytest.approx(log_weight.std(ddof=1))
    for summary in (tokens, sequences, step):
        _plain(summary)


def test_exact_zeros_are_exact(planted):
    _, rollout, offsets, clusters = planted()
    tokens, sequences, step = _all_summaries(rollout, rollout, offsets, clusters)
    assert tokens.exact
    assert sequences.exact
    assert step.exact
    assert sequences.k_hat.state == "exact"
    assert (sequences.ess.value, tokens.k3.value, tokens.chi2.value, step.identical_fraction) == (
        1.0,
        0.0,
        0.0,
        1.0,
    )
    assert tokens.top_share.k3 is None
    assert tokens.by_probability.num_exact_zero == rollout.size
    for summary in (tokens, sequences, step):
        _plain(summary)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=12),
    st.integers(1, 12),
    st.sampled_from([0.0, 1e-9, 0.1, 5.0, 400.0]),
    st.integers(0, 99),
)
def test_any_shape_gives_numbers_or_reasons(lengths, prompts, scale, seed):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    clusters = rng.integers(0, prompts, len(lengths))
    rollout = -rng.exponential(1.0, offsets[-1])
    train = rollout + scale * rng.normal(size=rollout.size)
    if not sum(lengths):
        for call in (summarise_sequences, summarise_step):
            with pytest.raises(InconclusiveError):
                call(train, offsets, clusters)
        return
    for summary in _all_summaries(train, rollout, offsets, clusters):
        _plain(summary)
        for field in dataclasses.fields(summary):
            estimate = getattr(summary, field.name)
            if hasattr(estimate, "ci_low"):
                assert estimate.reason is not None or estimate.ci_low <= estimate.value <= estimate.ci_high


def test_overflow_is_null_with_a_reason_and_a_log_form():
    values = np.array([400.0, 0.0, 0.0])
    tokens = summarise_tokens(values, -np.ones(3), values - 1, [0, 3], [0])
    assert tokens.chi2.value is None
    assert "float64" in tokens.chi2.reason
    assert tokens.renyi2 == pytest.approx(800 - np.log(3))
    assert tokens.k3_clamped == pytest.approx((np.expm1(20) - 20) / 3)
    assert summarise_tokens(values * 2, -np.ones(3), values, [0, 3], [0]).k3.value is None


def test_heavy_weights_take_the_interval_away():
    log_weight = -1.1 * np.log1p(-(np.arange(300) + 0.5) / 300)
    sequences = summarise_sequences(log_weight, np.arange(301), np.arange(300))
    assert sequences.k_hat.value > 0.7
    for estimate in (sequences.ess, sequences.chi2, sequences.mean_weight):
        assert estimate.value is not None
        assert estimate.ci_low is None
        assert "Pareto k" in estimate.reason or "one prompt" in estimate.reason


def test_scatter_is_thinned_evenly(planted):
    train, rollout, offsets, clusters = planted(prompts=700, samples=4, length=3)
    advantage = np.arange(2800.0)
    sequences = summarise_sequences(train - rollout, offsets, clusters, advantage)
    assert len(sequences.scatter.length) == len(sequences.scatter.advantage) == 2000
    assert max(sequences.scatter.length) == np.diff(offsets).max()


def test_covariance_adds_up_to_the_total(planted):
    train, rollout, offsets, _ = planted()
    rng = np.random.default_rng(5)
    first = rng.normal(0, 0.01, rollout.size)
    second = (train - rollout) - first
    got = covariance_of_steps({"decode->prefill": first, "prefill->forward": second}, offsets)
    total = np.add.reduceat(train - rollout, offsets[:-1])
    assert got.variance_total == pytest.approx(total.var(ddof=1))
    assert got.token_variance_total == pytest.approx((train - rollout).var())
    assert got.matrix[0][1] == got.matrix[1][0] < 0
    with pytest.raises(ConfigError):
        covariance_of_steps({"a": first, "b": first[:-1]}, offsets)
    with pytest.raises(InconclusiveError):
        covariance_of_steps({}, offsets)


def test_arrays_that_do_not_fit_are_refused(planted):
    train, rollout, offsets, clusters = planted()
    with pytest.raises(ConfigError):
        summarise_step(train - rollout, offsets[:-1], clusters[:-1])
    with pytest.raises(ConfigError):
        summarise_sequences(train - rollout, offsets, clusters, advantages=[1.0])
    with pytest.raises(InconclusiveError):
        summarise_tokens(np.full(3, np.nan), -np.ones(3), -np.ones(3), [0, 3], [0])
