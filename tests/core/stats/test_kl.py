import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.errors import InconclusiveError
from mismatch_probe.stats import chi2, kl_estimates, token_k1, token_k3, token_k3_reverse

LOG_RATIOS = st.lists(st.floats(-30, 30), min_size=1, max_size=40)


def test_estimators_match_exact_values(suites, check_case):
    for case in suites["kl_estimators"]["cases"]:
        result = kl_estimates(case["args"]["log_ratio"])
        for key, name in (
            ("k1", "k1"),
            ("k2", "k2"),
            ("k3", "k3"),
            ("k3_reverse", "k3_reverse"),
            ("rho", "mean_ratio"),
        ):
            check_case(case, key, getattr(result, name))
        check_case(case, "abs", result.mean_abs)


@pytest.mark.parametrize("log_ratio", [1e-12, -3e-9, 1e-5, 0.0199, 0.02, -0.0201])
def test_k3_keeps_its_digits_near_zero(log_ratio):
    x = Fraction(log_ratio)
    exact, term = Fraction(0), x
    for k in range(2, 30):
        term = term * x / k
        exact += term
    assert token_k3(log_ratio) == pytest.approx(float(exact), rel=4e-14)


@given(LOG_RATIOS)
def test_k3_minus_k1_is_ratio_minus_one(values):
    x = np.array(values)
    np.testing.assert_allclose(token_k3(x) - token_k1(x), np.expm1(x), rtol=1e-12, atol=1e-13)
    assert np.all(token_k3(x) >= 0)
    np.testing.assert_array_equal(token_k3_reverse(x), token_k3(-x))


@given(LOG_RATIOS)
def test_chi2_never_overflows_in_log_space(values):
    scaled = np.array(values) * 50
    result = chi2(scaled)
    assert math.isfinite(result.renyi2)
    assert (result.value is None) == (result.renyi2 > 709.0)
    assert -1e-9 <= result.self_normalised <= scaled.size - 1 + 1e-6
    assert result.num_clamped == sum(abs(v * 50) > 20 for v in values)


def test_clamped_values_stand_beside_the_raw_ones():
    result = kl_estimates([30.0, 0.0])
    assert result.k3 == pytest.approx((math.expm1(30) - 30) / 2)
    assert result.k3_clamped == pytest.approx((math.expm1(20) - 20) / 2)
    assert result.num_clamped == 1
    assert kl_estimates([800.0]).k3 == math.inf


@pytest.mark.parametrize("bad", [[], [math.nan, 0.0], [math.inf]])
def test_nothing_to_measure_is_inconclusive(bad):
    with pytest.raises(InconclusiveError):
        kl_estimates(bad)
