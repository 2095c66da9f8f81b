import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats import (
    cluster_standard_error,
    design_effect,
    holm,
    paired_difference,
    wilson_interval,
    zero_event_upper_bound,
)


def test_cluster_errors_match_exact_values(suites, check_case):
    for case in suites["cluster_se"]["cases"]:
        got = cluster_standard_error(case["args"]["x"], case["args"]["cluster"])
        check_case(case, "mean", got.mean)
        check_case(case, "se_naive", got.naive)
        check_case(case, "se_cr0", got.cr0)
        check_case(case, "se_cr1", got.cr1)
        check_case(case, "design_effect", got.design_effect)


def test_one_cluster_and_no_spread_have_no_design_effect():
    assert design_effect([1.0, 2.0], [0, 0]) is None
    assert design_effect([1.0, 1.0], [0, 1]) is None
    assert cluster_standard_error([1.0, 2.0, 3.0], [0, 0, 0]).effective_n == 1.0


def test_sign_flip_is_exact_for_few_prompts():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=18), rng.normal(0.4, 1, size=18)
    clusters = np.repeat(np.arange(9), 2)
    sums = (second - first).reshape(9, 2).sum(axis=1)
    patterns = np.array(list(itertools.product([1, -1], repeat=9))) @ sums
    expected = np.mean(np.abs(patterns) >= abs(sums.sum()) - 1e-12)
    result = paired_difference(first, second, clusters)
    assert result.exact
    assert result.p_value == pytest.approx(expected)
    assert result.difference.value == pytest.approx((second - first).mean())


def test_many_prompts_sample_the_signs():
    rng = np.random.default_rng(1)
    base = rng.normal(size=200)
    clusters = np.arange(200) // 5
    none = paired_difference(base, base + rng.normal(0, 0.1, 200), clusters)
    some = paired_difference(base, base + 0.1 + rng.normal(0, 0.1, 200), clusters)
    assert not some.exact
    assert some.p_value == pytest.approx(1e-4)
    assert none.p_value > 0.01


def test_no_difference_at_all_has_p_one():
    result = paired_difference(np.arange(10.0), np.arange(10.0), np.arange(10))
    assert result.p_value == 1.0
    assert result.difference.value == 0.0


def test_paired_difference_weighs_by_tokens():
    result = paired_difference([1.0, 2.0], [2.0, 6.0], [0, 1], sizes=[10, 90])
    assert result.difference.value == pytest.approx(5 / 100)
    assert result.difference.n == 100
    with pytest.raises(InconclusiveError):
        paired_difference([], [], [])
    with pytest.raises(ConfigError):
        paired_difference([1.0], [1.0, 2.0], [0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_above_bonferroni_steps(p_values):
    adjusted = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    assert min(adjusted) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    with pytest.raises(ConfigError):
        holm([1.2])


def test_wilson_interval_matches_scipy():
    from scipy.stats import binomtest

    for k, n in ((0, 20), (1, 30), (7, 50), (50, 50)):
        expected = binomtest(k, n).proportion_ci(method="wilson")
        assert wilson_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    with pytest.raises(ConfigError):
        wilson_interval(3, 2)


def test_zero_events_bound_is_the_rule_of_three():
    assert zero_event_upper_bound(1000) == pytest.approx(0.003, rel=0.01)
    assert (1 - zero_event_upper_bound(10)) ** 10 == pytest.approx(0.05)
