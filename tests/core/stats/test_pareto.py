import math

import numpy as np
import pytest

from mismatch_probe.errors import InconclusiveError
from mismatch_probe.stats import effective_sample_size, pareto_k, smooth_log_weights
from mismatch_probe.stats.pareto import minimum_entries


def _arviz_k(log_weight, r_eff=1.0):
    from arviz_stats.base import array_stats

    # arviz reads log-likelihoods (leave-one-out) and negates them.
    return array_stats.psislw(-np.asarray(log_weight), r_eff=r_eff)


def test_fits_match_exact_values(suites, check_case):
    for case in suites["psis"]["cases"]:
        log_weight = case["args"]["log_w"]
        fit = pareto_k(log_weight)
        assert fit.state == "value"
        assert fit.tail_size == case["expect"]["M"]
        check_case(case, "khat", fit.value)
        check_case(case, "khat_before_prior", fit.value_before_prior)
        check_case(case, "sigma", fit.sigma)
        check_case(case, "good_k", fit.good_k)
        smoothed = smooth_log_weights(log_weight)
        check_case(case, "smoothed_top3_lognorm", np.sort(smoothed)[-3:])
        check_case(case, "ess_psis", effective_sample_size(smoothed).ess)
        if case["expect"]["min_S"] is None:
            assert math.isinf(minimum_entries(fit.value))
            assert fit.num_needed is None
        else:
            check_case(case, "min_S", minimum_entries(fit.value))
            assert fit.num_needed == math.ceil(case["expect"]["min_S"])


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("r_eff", [1.0, 0.4])
def test_agrees_with_arviz_on_known_tails(k, r_eff):
    uniform = np.random.default_rng(7).random(3000)
    weight = 1.0 + (np.expm1(-k * np.log1p(-uniform)) / k if k else -np.log1p(-uniform))
    log_weight = np.log(weight)
    fit = pareto_k(log_weight, r_eff=r_eff)
    smoothed, expected = _arviz_k(log_weight, r_eff)
    assert fit.value == pytest.approx(float(expected), abs=1e-9)
    assert abs(fit.value - k) < 0.25
    np.testing.assert_allclose(smooth_log_weights(log_weight, r_eff=r_eff), smoothed, atol=1e-9)


def test_sign_matters():
    """Passing -log W turns an alarm into a pass; the argument is log W."""
    log_weight = -0.9 * np.log1p(-(np.arange(2000) + 0.5) / 2000)
    assert pareto_k(log_weight).value > 0.7
    assert pareto_k(-log_weight).value < 0.5


@pytest.mark.parametrize(
    ("log_weight", "state"),
    [
        (np.zeros(100), "exact"),
        (np.full(40, -3.0), "exact"),
        (np.zeros(3), "exact"),
        (np.array([0.4]), "too_few"),
        (np.linspace(0, 1, 24), "too_few"),
        (np.minimum(np.linspace(-5, 5, 400), 0.7), "degenerate"),
        (np.concatenate([np.zeros(990), np.full(10, -1.0)]), "degenerate"),
        (np.concatenate([np.zeros(99), [np.nan]]), "degenerate"),
        (np.concatenate([np.zeros(99), [np.inf]]), "degenerate"),
        (np.arange(100) * 500.0, "degenerate"),
        (np.concatenate([np.full(999, -np.inf), [0.0]]), "degenerate"),
    ],
)
def test_states_without_a_value(log_weight, state):
    result = pareto_k(log_weight)
    assert result.state == state
    assert result.value is None
    assert result.reason


def test_zero_weights_below_the_tail_are_fine():
    tail = -0.5 * np.log1p(-(np.arange(300) + 0.5) / 300)
    assert pareto_k(np.concatenate([np.full(50, -np.inf), tail])).state == "value"


def test_empty_and_unfit_weights_raise():
    with pytest.raises(InconclusiveError):
        pareto_k([])
    with pytest.raises(InconclusiveError, match="cannot be smoothed"):
        smooth_log_weights(np.zeros(100))
