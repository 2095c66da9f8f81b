"""Growth of staleness: known laws are found again, intervals cover, measured updates are drawn as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import binom

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.simulate.stale_updates import (
    MAX_SCALE,
    MeasuredUpdates,
    draw_tokens,
    stale_log_ratio,
    update_at,
)
from mismatch_probe.simulate.staleness import fit_staleness, measure_point
from mismatch_probe.stats.layout import SequenceLayout

STEPS = (1, 2, 4, 8, 16)
VARIANCE = 2e-4  # of one step's log-ratio: KL 1e-4 a token


def simulated(growth, seed, *, prompts=24, samples=4, spread=0.2, steps=STEPS, mismatch=0.0):
    """Updates that wander (growth 1) or push the same way (growth 2); prompts differ by `spread`."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(20, 60, prompts * samples)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    clusters = np.repeat(np.arange(prompts), samples)
    size = np.repeat(np.exp(generator.normal(0, spread, prompts))[clusters], lengths)
    if growth == 1:
        noise = np.cumsum(generator.normal(size=(max(steps), lengths.sum())), axis=0)[np.array(steps) - 1]
    else:
        noise = np.array(steps)[:, None] * generator.normal(size=lengths.sum())
    moved = np.sqrt(VARIANCE) * size * noise
    between = np.sqrt(VARIANCE) * size * np.power(np.array(steps)[:, None], growth / 2.0)
    updates = moved - np.square(between) / 2
    drift = mismatch * generator.normal(size=lengths.sum())
    true_kl = VARIANCE / 2 * np.exp(2 * spread**2)  # E of the prompts' squared sizes
    return MeasuredUpdates.of(steps, list(updates), drift, offsets, clusters), true_kl


@pytest.mark.parametrize("growth", [1, 2])
def test_the_law_of_growth_is_found_again(growth):
    updates, true_kl = simulated(growth, 0, prompts=100)
    fit = fit_staleness(updates)
    assert fit.model.growth == pytest.approx(growth, abs=0.04)
    assert fit.model.kl_per_step == pytest.approx(true_kl, rel=0.15)
    # K2 of variance v is KL (1 + v / 4): at the last checkpoint of directed updates 1 % too much.
    assert fit.growth.ci_low - 0.005 < growth < fit.growth.ci_high
    assert fit.misfit < 1.1
    for point in fit.points:
        assert point.kl.value == pytest.approx(true_kl * point.steps**growth, rel=0.15)
        # Independent Gaussian tokens: the Gaussian is right, and so is the bootstrap of tokens.
        assert point.gaussian_std == pytest.approx(point.std_log_weight.value, rel=0.15)
        assert point.independent_std == pytest.approx(point.std_log_weight.value, rel=0.15)


def test_intervals_of_growth_and_kl_cover_as_often_as_they_say():
    replicates, hits = 150, np.zeros(2, dtype=int)
    for seed in range(replicates):
        updates, true_kl = simulated(1, 1000 + seed, prompts=16, samples=2)
        fit = fit_staleness(updates)
        hits += (
            fit.growth.ci_low <= 1 <= fit.growth.ci_high,
            fit.kl_per_step.ci_low <= true_kl <= fit.kl_per_step.ci_high,
        )
    # Fails where the true coverage is below about 90 %.
    assert (hits >= binom.ppf(0.001, replicates, 0.95)).all(), hits / replicates


def policies(generator, mismatch, contexts=3000, vocabulary=12):
    """mu, pi_old and pi over a small vocabulary, tokens of mu, and the exact KL(pi_old || pi)."""
    logits = generator.normal(0, 2, (contexts, vocabulary))
    old = log_softmax(logits, axis=1)
    rollout = log_softmax(logits + mismatch * generator.normal(size=logits.shape), axis=1)
    train = log_softmax(logits + 0.1 * generator.normal(size=logits.shape), axis=1)
    exact = (np.exp(old) * (old - train)).sum(axis=1).mean()
    return rollout, old, train, exact


@pytest.mark.parametrize(("mismatch", "plain_is_right"), [(0.03, True), (1.0, False)])
def test_plain_k3_on_tokens_of_mu_estimates_the_kl_where_mu_is_near_old(mismatch, plain_is_right):
    generator = np.random.default_rng(3)
    rollout, old, train, exact = policies(generator, mismatch)
    draws = 100
    uniform = generator.random((draws, len(old), 1))
    tokens = np.minimum((np.exp(rollout).cumsum(axis=1) < uniform).sum(axis=2), old.shape[1] - 1)
    rows = np.arange(len(old))
    update, drift = ((a - b)[rows, tokens].ravel() for a, b in ((train, old), (old, rollout)))
    lengths = np.full(draws, len(old))
    updates = MeasuredUpdates.of(
        [1], [update], drift, np.concatenate([[0], np.cumsum(lengths)]), np.arange(draws)
    )
    point = measure_point(updates, 0)
    assert point.kl_weighted.value == pytest.approx(exact, rel=0.02)
    assert (point.kl.value == pytest.approx(exact, rel=0.02)) == plain_is_right
    if plain_is_right:
        assert point.kl.ci_low < exact < point.kl.ci_high


def test_single_tokens_of_a_large_ratio_do_not_decide_the_law():
    """One token in 2000 comes out a hundred times likelier: K3 is theirs, the spread of log W is not."""
    updates, _ = simulated(1, 4, prompts=100, spread=0.0, steps=(4,))
    wild = updates.log_ratio[0].copy()
    wild[::2000] = np.log(100)
    fit = fit_staleness(MeasuredUpdates.of([4], [wild], updates.mismatch, *bounds(updates)))
    (point,) = fit.points
    lengths = updates.layout.lengths
    assert point.kl.value > 50 * 4 * VARIANCE / 2
    assert point.gaussian_std > 2 * point.std_log_weight.value
    assert np.sqrt(2 * fit.model.kl(4) * lengths.mean()) == pytest.approx(point.std_log_weight.value, rel=0.1)


def test_one_checkpoint_gives_its_kl_and_says_that_growth_is_taken_as_1():
    updates, true_kl = simulated(2, 5, prompts=60, steps=(8,))
    fit = fit_staleness(updates)
    assert fit.model.growth == 1.0
    assert fit.growth.ci_low is None
    assert "taken as 1" in fit.growth.reason
    assert "taken as 1" in " ".join(fit.notes)
    assert fit.model.kl(8) == pytest.approx(true_kl * 64, rel=0.15)
    assert fit.model.kl_per_step == pytest.approx(fit.points[0].half_square.value / 8)


def test_the_runs_own_weights_are_reported_and_not_fitted():
    updates, _ = simulated(1, 6)
    same = MeasuredUpdates.of(
        (*STEPS, 32),
        [*updates.log_ratio, np.zeros_like(updates.mismatch)],
        updates.mismatch,
        updates.layout.offsets,
        updates.layout.clusters,
    )
    fit, without = fit_staleness(same), fit_staleness(updates)
    assert (fit.model.kl_per_step, fit.model.growth) == (without.model.kl_per_step, without.model.growth)
    assert [point.fitted for point in fit.points] == [True] * 5 + [False]
    assert fit.points[-1].kl.value == 0.0
    assert "32 steps not fitted" in " ".join(fit.notes)
    with pytest.raises(InconclusiveError, match="own checkpoint"):
        fit_staleness(
            MeasuredUpdates.of([3], [np.zeros_like(updates.mismatch)], updates.mismatch, *bounds(updates))
        )


def bounds(updates):
    return updates.layout.offsets, updates.layout.clusters


def test_rounding_of_the_size_of_the_mismatch_is_no_staleness():
    """Rounding adds the same KL at every checkpoint; float32 sees through it, without it such points go."""
    generator = np.random.default_rng(7)
    clean, true_kl = simulated(1, 7, prompts=100, steps=(1, 4, 16, 64))
    rounding = np.sqrt(8e-4)  # KL 4e-4, four times a step's
    rounded = list(clean.log_ratio + generator.normal(-4e-4, rounding, clean.log_ratio.shape))
    drift = generator.normal(-4e-4, rounding, clean.mismatch.size)
    blind = fit_staleness(MeasuredUpdates.of(clean.steps, rounded, drift, *bounds(clean)))
    assert [point.fitted for point in blind.points] == [False, False, True, True]
    seeing = fit_staleness(
        MeasuredUpdates.of(clean.steps, rounded, drift, *bounds(clean), movement=list(clean.log_ratio))
    )
    assert all(point.fitted for point in seeing.points)
    assert seeing.model.growth == pytest.approx(1, abs=0.04)
    assert seeing.model.kl_per_step == pytest.approx(true_kl, rel=0.15)
    assert seeing.points[0].kl.value > 3 * seeing.points[0].kl_movement.value


def test_a_kl_that_falls_with_steps_is_no_law():
    updates, _ = simulated(1, 8, steps=(1, 16))
    turned = MeasuredUpdates.of((16, 1), list(updates.log_ratio), updates.mismatch, *bounds(updates))
    with pytest.raises(InconclusiveError, match="does not grow"):
        fit_staleness(turned)


def test_growth_that_cannot_be_told_from_none_is_taken_as_1():
    """Checkpoints of 4 and 4.5 steps: their KL is known, their growth is not."""
    one, true_kl = simulated(1, 2, prompts=12, samples=1, spread=0.0, steps=(4,))
    later = np.random.default_rng(3).normal(-4.5 * VARIANCE / 2, np.sqrt(4.5 * VARIANCE), one.mismatch.size)
    fit = fit_staleness(MeasuredUpdates.of((4, 4.5), [one.log_ratio[0], later], one.mismatch, *bounds(one)))
    assert (fit.model.growth, fit.growth.ci_low) == (1.0, None)
    assert "taken as 1" in fit.growth.reason
    assert fit.growth.reason in fit.notes
    assert fit.kl_per_step.ci_low < true_kl < fit.kl_per_step.ci_high
    assert fit.model.kl_per_step == pytest.approx(true_kl, rel=0.15)


def test_what_cannot_be_is_refused():
    updates, _ = simulated(1, 9)
    row, drift = updates.log_ratio[0], updates.mismatch
    for steps, rows in (([], []), ([0], [row]), ([2, 2], [row, row]), ([1, 2], [row]), ([1], [row[:-1]])):
        with pytest.raises(ConfigError):
            MeasuredUpdates.of(steps, rows, drift, *bounds(updates))
    with pytest.raises(InconclusiveError, match="not finite"):
        MeasuredUpdates.of([1], [np.where(np.arange(row.size) == 3, -np.inf, row)], drift, *bounds(updates))


def test_too_few_prompts_give_a_law_without_an_interval():
    updates, true_kl = simulated(1, 10, prompts=4, samples=20, spread=0.0)
    fit = fit_staleness(updates)
    assert fit.model.kl_per_step == pytest.approx(true_kl, rel=0.3)
    assert fit.growth.ci_low is None
    assert "4 prompts" in fit.growth.reason


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.3, 60), st.sampled_from([1.0, 1.5, 2.0]))
def test_scaled_updates_have_the_laws_kl_and_stay_policies(seed, steps, growth):
    updates, true_kl = simulated(1, seed, prompts=8, samples=4, spread=0.0, steps=(1, 4, 16))
    nearest = min((1, 4, 16), key=lambda k: abs(np.log(steps / k)))
    try:
        update = update_at(updates, steps, growth)
    except InconclusiveError:
        assert (steps / nearest) ** (growth / 2) > MAX_SCALE
        return
    wanted = true_kl * nearest * (steps / nearest) ** growth
    assert np.mean(np.expm1(update) - update) == pytest.approx(wanted, rel=0.25)
    measured = updates.log_ratio[updates.steps.index(nearest)]
    # A ratio of two policies has mean 1; what is off in the sample scales along, and no more than that.
    scale = (steps / nearest) ** (growth / 2)
    assert np.mean(np.expm1(update)) == pytest.approx(scale * np.mean(np.expm1(measured)), abs=0.1 * wanted)


def test_a_measured_checkpoint_is_drawn_as_it_was_measured_and_rounding_is_not_scaled():
    updates, _ = simulated(1, 11, mismatch=0.02)
    assert np.array_equal(update_at(updates, 4, 1.3), updates.log_ratio[2])
    assert not update_at(updates, 0, 1.0).any()
    # All of it rounding: nothing moved, so nothing scales.
    still = np.zeros_like(updates.log_ratio[0])
    still[0] = 1e-9
    only = MeasuredUpdates.of(
        [4], [updates.log_ratio[2]], updates.mismatch, *bounds(updates), movement=[still]
    )
    assert update_at(only, 8, 1.0) == pytest.approx(updates.log_ratio[2], abs=1e-8)


def test_one_token_of_a_large_ratio_does_not_move_the_others():
    updates, _ = simulated(1, 14, spread=0.0, steps=(4,))
    wild = updates.log_ratio[0].copy()
    wild[7] = 4.6
    scaled = update_at(MeasuredUpdates.of([4], [wild], updates.mismatch, *bounds(updates)), 6, 1.0)
    tame = update_at(updates, 6, 1.0)
    assert scaled[7] == pytest.approx(4.6 * np.sqrt(1.5), rel=0.1)
    others = np.arange(wild.size) != 7
    assert np.abs(scaled - tame)[others].max() < 0.1 * np.abs(tame).max()


def test_draws_keep_both_factors_of_a_token_together():
    """An update that undoes the mismatch leaves log W = 0 in every draw, at any length."""
    updates, _ = simulated(1, 12, mismatch=0.05)
    undoing = MeasuredUpdates.of([2], [-updates.mismatch], updates.mismatch, *bounds(updates))
    for length in (1, 30, 200):
        drawn = stale_log_ratio(undoing, [2] * 20, 1.0, np.random.default_rng(0), length=length)
        assert drawn.update.shape == (20, length)
        assert np.array_equal(drawn.update + drawn.mismatch, np.zeros((20, length)))
    mixed = stale_log_ratio(undoing, [0, 2], 1.0, np.random.default_rng(0), length=30)
    assert not mixed.update[0].any()
    assert mixed.update[1].any()


def test_drawn_responses_vary_as_the_measured_ones_do_and_gaussian_noise_does_not():
    """A shift shared by a whole response: log W varies with T squared, which independent noise misses."""
    generator = np.random.default_rng(13)
    lengths = np.full(400, 40)
    shared = np.repeat(generator.normal(0, 0.01, lengths.size), lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    updates = MeasuredUpdates.of([1], [shared], np.zeros(shared.size), offsets, np.arange(400) // 4)
    fit = fit_staleness(updates)
    (point,) = fit.points
    assert point.std_log_weight.value == pytest.approx(0.4, rel=0.1)
    assert point.gaussian_std == pytest.approx(0.4 / np.sqrt(40), rel=0.1)
    drawn = stale_log_ratio(fit.updates, [1] * 2000, 1.0, generator, length=40)
    assert drawn.update.sum(axis=1).std() == pytest.approx(point.std_log_weight.value, rel=0.1)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any), st.integers(1, 40), st.integers(0, 99)
)
def test_drawn_tokens_are_stretches_of_responses(lengths, length, seed):
    layout = SequenceLayout.from_arrays(np.concatenate([[0], np.cumsum(lengths)]))
    tokens = draw_tokens(layout, length, np.random.default_rng(seed))
    assert tokens.shape == (length,)
    breaks = np.flatnonzero(np.diff(tokens) != 1) + 1
    ends = np.asarray(layout.offsets[1:])
    for stretch in np.split(tokens, breaks)[:-1]:  # all but the last run to the end of a response
        assert stretch[-1] + 1 in ends
