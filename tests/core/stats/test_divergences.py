import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats import binary_divergences


def test_divergences_match_exact_values(suites, check_case):
    for case in suites["binary_divergences"]["cases"]:
        got = binary_divergences(case["args"]["logp_train"], case["args"]["logp_rollout"])
        check_case(case, "tv", got.tv[0])
        check_case(case, "eps", got.logit_displacement[0])
        check_case(case, "kl_train_infer", got.kl_train_rollout[0])
        check_case(case, "kl_infer_train", got.kl_rollout_train[0])


@given(st.floats(-50, -1e-12), st.floats(-50, -1e-12))
def test_displacement_and_probabilities_agree(log_p, log_q):
    got = binary_divergences(log_p, log_q)
    p, epsilon = np.exp(log_p), got.logit_displacement[0]
    # rho - 1 = (1 - p)(e^eps - 1)
    np.testing.assert_allclose(
        np.expm1(log_p - log_q), -np.expm1(log_p) * np.expm1(epsilon), rtol=1e-6, atol=1e-12
    )
    assert 0 <= got.tv[0] <= 1
    # Pinsker; where the two agree to 1e-14 both sides are below what float64 resolves of their terms.
    assert got.kl_rollout_train[0] >= 2 * got.tv[0] ** 2 * (1 - 1e-9) - 1e-30
    assert p <= 1


def test_both_ends_are_safe():
    got = binary_divergences([0.0, -1e-300, -1e-17, -800.0], [0.0, -1e-17, -1e-300, -790.0])
    assert np.all(np.isfinite(got.tv))
    assert got.logit_displacement[0] == 0.0
    assert got.kl_train_rollout[0] == 0.0
    assert got.logit_displacement[3] == pytest.approx(-10.0)
    certain = binary_divergences(0.0, -1.0)
    assert certain.kl_train_rollout[0] == pytest.approx(1.0)
    assert np.isposinf(certain.kl_rollout_train[0])


def test_probabilities_above_one_are_refused():
    with pytest.raises(ConfigError):
        binary_divergences([0.5], [-1.0])
