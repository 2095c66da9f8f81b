import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.stats import chi2, effective_sample_size
from mismatch_probe.stats.martingale import gaussian_drift, mean_weight


def test_effective_size_and_martingale_match_exact_values(suites, check_case):
    for case in suites["ess_martingale"]["cases"]:
        log_weight = case["args"]["log_w"]
        size, square, mean = effective_sample_size(log_weight), chi2(log_weight), mean_weight(log_weight)
        check_case(case, "ess", size.ess)
        check_case(case, "ess_frac", size.fraction)
        check_case(case, "perplexity_ess_frac", size.entropy_fraction)
        check_case(case, "max_weight_share", size.max_weight_share)
        check_case(case, "log_mean_w", size.log_mean_weight)
        check_case(case, "chi2_plugin", square.value)
        check_case(case, "renyi2_plugin", square.renyi2)
        check_case(case, "chi2_selfnorm", square.self_normalised)
        check_case(case, "renyi2_selfnorm", np.log1p(square.self_normalised))
        check_case(case, "mean_w", mean.mean)
        check_case(case, "mean_w2", 1.0 + square.value)
        check_case(case, "se_mean", mean.error)
        check_case(case, "gap_log", mean.gap)
        check_case(case, "kl_mu_pi_k1", -np.mean(log_weight))
        check_case(case, "t_stat_mean_eq_1", (mean.mean - 1.0) / mean.error)
        assert mean.t is None or mean.t == pytest.approx((mean.mean - 1.0) / mean.error, rel=1e-6)


def test_gaussian_drift_matches_exact_values(suites, check_case):
    names = {"E_k1": "mean_k1", "E_k2": "mean_k2", "E_k3": "mean_k3", "var_k1": "var_k1", "var_k2": "var_k2"}
    for case in suites["gaussian_kl_theory"]["cases"]:
        drift = gaussian_drift(case["args"]["v"])
        for key, name in {**names, "var_k3": "var_k3", "chi2": "chi2"}.items():
            check_case(case, key, getattr(drift, name))


@given(st.lists(st.floats(-2000, 2000), min_size=1, max_size=50), st.floats(-500, 500))
def test_effective_size_ignores_a_common_factor(values, shift):
    one, two = effective_sample_size(values), effective_sample_size(np.array(values) + shift)
    assert one.ess == pytest.approx(two.ess, rel=1e-9)
    assert 1.0 - 1e-9 <= one.ess <= len(values) * (1 + 1e-9)
    assert one.fraction <= one.entropy_fraction * (1 + 1e-9)


def test_no_t_for_weights_without_a_variance():
    heavy = -1.2 * np.log1p(-(np.arange(400) + 0.5) / 400)
    result = mean_weight(heavy)
    assert result.t is None
    assert "not testable" in result.reason


def test_clusters_widen_the_error():
    rng = np.random.default_rng(0)
    by_prompt = rng.normal(0, 0.1, 20)
    clusters = np.repeat(np.arange(20), 50)
    values = by_prompt[clusters] + rng.normal(0, 0.01, 1000)
    assert mean_weight(values, clusters).error > 4 * mean_weight(values).error
