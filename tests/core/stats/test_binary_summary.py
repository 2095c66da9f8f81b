import numpy as np
import pytest

from mismatch_probe.stats import binary_divergences, summarise_tokens
from mismatch_probe.stats.binary_summary import binary_columns, binary_summary_from_table
from mismatch_probe.stats.layout import SequenceLayout


def _summary(train, rollout, prompts=10):
    train, rollout = np.asarray(train, dtype=float), np.asarray(rollout, dtype=float)
    layout = SequenceLayout.from_arrays(
        np.linspace(0, train.size, prompts + 1).astype(int), np.arange(prompts)
    )
    return binary_summary_from_table(layout.token_table(*binary_columns(train, rollout)), 0)


def test_means_are_those_of_the_elementwise_divergences():
    rng = np.random.default_rng(0)
    rollout = -rng.exponential(1.0, 500) - 1e-3
    train = np.minimum(rollout + 0.1 * rng.normal(size=500), -1e-6)
    found, each = _summary(train, rollout), binary_divergences(train, rollout)
    assert found.tv.value == pytest.approx(each.tv.mean(), rel=1e-12)
    assert found.kl_rollout_train.value == pytest.approx(each.kl_rollout_train.mean(), rel=1e-12)
    assert found.kl_train_rollout.value == pytest.approx(each.kl_train_rollout.mean(), rel=1e-12)
    displacement = np.abs(each.logit_displacement).mean()
    assert found.abs_logit_displacement.value == pytest.approx(displacement, rel=1e-12)
    assert found.tv.ci_low < found.tv.value < found.tv.ci_high
    assert found.num_left_out == 0


def test_a_probability_of_exactly_one_on_one_side_is_left_out_and_counted():
    rollout = np.full(40, -0.5)
    train = rollout - 0.1
    train[3], rollout[7] = 0.0, 0.0
    train[11] = rollout[11] = 0.0  # both certain: no distance at all
    found = _summary(train, rollout)
    assert found.num_left_out == 2
    assert found.kl_rollout_train.n == 38
    assert np.isfinite(found.abs_logit_displacement.value)
    assert found.tv.n == 40


def test_one_side_certain_everywhere_has_a_reason():
    found = _summary(np.zeros(20), np.full(20, -1.0))
    assert found.kl_rollout_train.value is None
    assert "exactly 1" in found.kl_rollout_train.reason
    assert found.tv.value == pytest.approx(1 - np.exp(-1.0))


def test_log_probabilities_above_zero_give_no_number(planted):
    train, rollout, offsets, clusters = planted()
    train = train.copy()
    train[5] = 0.3
    binary = summarise_tokens(train - rollout, rollout, train, offsets, clusters).binary
    assert binary.tv.value is None
    assert "MP103" in binary.tv.reason
