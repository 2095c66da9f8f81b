"""Paired changes of drift: against definitions, and what must not be claimed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mismatch_probe.causes.ablation import holm_over_rows, paired_change
from mismatch_probe.errors import ConfigError, InconclusiveError


def drift(prompts=20, samples=3, length=15, scale=0.1, seed=0):
    generator = np.random.default_rng(seed)
    offsets = np.arange(prompts * samples + 1) * length
    clusters = np.repeat(np.arange(prompts), samples)
    return generator.normal(0, scale, offsets[-1]), offsets, clusters


def test_values_are_those_of_the_definitions():
    before, offsets, clusters = drift()
    after = 2.0 * before
    got = paired_change(before, after, offsets, clusters, floor_k3=1e-3)
    k3 = [np.mean(np.exp(values) - 1 - values) for values in (before, after)]
    assert (got.k3_before, got.k3_after) == pytest.approx(k3, rel=1e-12)
    assert got.k3_change.value == pytest.approx(k3[1] - k3[0], rel=1e-12)
    assert got.floors == pytest.approx((k3[1] - k3[0]) / 1e-3, rel=1e-12)
    sums = before.reshape(-1, 15).sum(axis=1)
    assert got.std_before == pytest.approx(sums.std(ddof=1), rel=1e-12)
    assert got.std_change.value == pytest.approx(sums.std(ddof=1), rel=1e-9)
    assert got.std_change.ci_low > 0
    assert got.p_value < 0.01
    assert got.mean_abs == pytest.approx(np.abs(before).mean(), rel=1e-12)


def test_a_knob_that_changes_nothing_is_not_in_effect_and_tests_nothing():
    before, offsets, clusters = drift()
    nothing = paired_change(before, before, offsets, clusters, floor_k3=1e-3)
    assert not nothing.in_effect
    assert nothing.identical_fraction == 1.0
    # Two rows are tested, not three.
    assert holm_over_rows([None, 0.01, 0.03]) == [None, pytest.approx(0.02), pytest.approx(0.03)]
    assert holm_over_rows([None, None]) == [None, None]


def test_a_change_that_one_prompt_carries_has_a_value_and_no_interval():
    before, offsets, clusters = drift(prompts=32)
    after = before + np.random.default_rng(1).normal(0, 1e-6, before.size)
    after[100] += 0.3
    found = paired_change(before, after, offsets, clusters, floor_k3=None).k3_change
    assert found.value > 0
    assert found.ci_low is None
    assert "too few prompts" in found.reason


def test_one_bit_is_in_effect():
    before, offsets, clusters = drift()
    after = before.copy()
    after[7] = np.nextafter(after[7], 1.0)
    got = paired_change(before, after, offsets, clusters, floor_k3=None)
    assert got.in_effect
    assert got.floors is None


def test_an_interval_of_no_effect_covers_zero_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        before, offsets, clusters = drift(seed=seed)
        after, _, _ = drift(seed=1000 + seed)
        found = paired_change(before, after, offsets, clusters, floor_k3=None).k3_change
        covered += found.ci_low <= 0 <= found.ci_high
    assert covered >= 50


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.01, 1.0))
def test_turning_a_knob_back_negates_the_change(seed, scale):
    before, offsets, clusters = drift(prompts=8, seed=seed)
    after, _, _ = drift(prompts=8, seed=seed + 1, scale=scale)
    there = paired_change(before, after, offsets, clusters, floor_k3=0.1)
    back = paired_change(after, before, offsets, clusters, floor_k3=0.1)
    assert there.k3_change.value == pytest.approx(-back.k3_change.value, rel=1e-9)
    assert there.std_change.value == pytest.approx(-back.std_change.value, rel=1e-6, abs=1e-12)
    assert there.p_value == pytest.approx(back.p_value)


def test_what_cannot_be_compared_is_refused():
    before, offsets, clusters = drift()
    with pytest.raises(ConfigError):
        paired_change(before, before[:-1], offsets, clusters, floor_k3=None)
    broken = before.copy()
    broken[3] = np.nan
    with pytest.raises(InconclusiveError):
        paired_change(before, broken, offsets, clusters, floor_k3=None)
    with pytest.raises(InconclusiveError, match="float64"):
        paired_change(before, before + 800.0, offsets, clusters, floor_k3=None)


def test_one_sequence_has_no_spread():
    got = paired_change([0.1, 0.2], [0.2, 0.1], [0, 2], [0], floor_k3=None)
    assert got.std_before is None
    assert got.std_change.reason
    assert got.p_value is None
