import numpy as np
import pytest

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.stats.naming import framework_metrics


def _flat(case):
    mask = np.array(case["args"]["mask"], dtype=bool)
    train, rollout = (np.array(case["args"][key])[mask] for key in ("logp_train", "logp_rollout"))
    return train, rollout, np.concatenate([[0], np.cumsum(mask.sum(axis=1))])


def _by_name(train, rollout, offsets):
    metrics = framework_metrics(train, rollout, offsets)
    names = {(m.framework, m.name): m.value for m in metrics}
    assert len(names) == len(metrics)
    return names


def test_verl_metrics_match_exact_values(suites, check_case):
    for case in suites["verl_offpolicy_metrics"]["cases"]:
        names = _by_name(*_flat(case))
        for key in case["expect"]:
            check_case(case, key, names["verl", f"rollout_corr/{key}"])


def test_names_that_differ_only_in_convention():
    rng = np.random.default_rng(0)
    offsets = np.array([0, 3, 3, 40, 60])
    rollout = -rng.exponential(1.0, 60)
    train = rollout + rng.normal(0.05, 0.3, 60)
    names = _by_name(train, rollout, offsets)
    lr = train - rollout
    parts = [lr[0:3], lr[3:40], lr[40:60]]
    assert names["verl", "rollout_corr/kl"] == pytest.approx(-lr.mean())
    assert names["AReaL", "behave_approx_kl"] == pytest.approx(lr.mean())
    assert names["slime", "mis_kl"] == pytest.approx(-np.mean([p.mean() for p in parts]))
    assert names["verl", "rollout_corr/chi2_seq"] == pytest.approx(
        np.mean([np.exp(2 * p.sum()) for p in parts]) - 1
    )
    geometric = np.mean([np.exp(2 * p.mean()) for p in parts]) - 1
    assert names["ms-swift", "rollout_correction/chi2_seq"] == pytest.approx(geometric)
    assert names["NeMo-RL", "token_mult_prob_error"] == pytest.approx(np.exp(np.abs(lr)).mean())
    assert names["NeMo-RL", "gen_kl_error"] == pytest.approx(names["verl", "rollout_corr/k3_kl"])
    assert names["NeMo-RL", "policy_kl_error"] == pytest.approx((np.exp(-lr) - 1 + lr).mean())
    gap = np.abs(np.exp(train) - np.exp(rollout))
    assert names["verl", "training/rollout_probs_diff_std"] == pytest.approx(gap.std(ddof=1))
    correlation = np.corrcoef(np.exp(train), np.exp(rollout))[0, 1]
    assert names["verl", "training/rollout_actor_probs_pearson_corr"] == pytest.approx(correlation)
    weights = np.array([np.exp(p.sum()) for p in parts])
    masked = np.where(weights > 3, 0, weights)
    assert names["TRL", "sampling/importance_sampling_ratio/mean"] == pytest.approx(masked.mean())
    assert names["tinker-cookbook", "optim/kl_sample_train_v2"] == pytest.approx(0.5 * (lr**2).mean())


def test_jensen_shannon_of_nemo():
    train, rollout = np.log([0.2, 0.7]), np.log([0.4, 0.6])
    mixture = np.log([0.3, 0.65])

    def k3(x):
        return np.exp(x) - 1 - x

    expected = np.mean(0.5 * k3(train - mixture) + 0.5 * k3(rollout - mixture))
    assert _by_name(train, rollout, [0, 2])["NeMo-RL", "js_divergence_error"] == pytest.approx(expected)


def test_clamps_stand_where_the_frameworks_put_them():
    names = _by_name(np.array([-0.1, -0.1]), np.array([-30.1, -0.1]), [0, 2])
    assert names["verl", "rollout_corr/k3_kl"] == pytest.approx((np.expm1(30) - 30) / 2)
    assert names["verl", "rollout_corr/chi2_token"] == pytest.approx((np.exp(40) - 1) / 2)
    assert names["miles", "train/train_rollout_kl"] == pytest.approx(5.0)
    assert names["ms-swift", "rollout_correction/k3_kl"] == pytest.approx(5.0)


def test_overflow_and_missing_spread_are_null():
    names = _by_name(np.array([-1.0]), np.array([-800.0]), [0, 1])
    assert names["NeMo-RL", "token_mult_prob_error"] is None
    assert names["SkyRL", "policy/rollout_train_logprobs_abs_diff_std"] is None
    with pytest.raises(InconclusiveError):
        framework_metrics([], [], [0])
    with pytest.raises(ConfigError):
        framework_metrics([-1.0], [-1.0, -1.0], [0, 1])
