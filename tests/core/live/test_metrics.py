"""One batch's drift as numbers for a logger: the tool's own statistics, and nothing that is not defined."""

import math

import numpy as np
import pytest
import torch

from mismatch_probe.errors import ConfigError
from mismatch_probe.live import drift_metrics
from mismatch_probe.live.metrics import merge_rows
from mismatch_probe.live.verl import mismatch_metrics
from mismatch_probe.stats import summarise_tokens
from mismatch_probe.stats.pareto import pareto_k


def batch(seed=0, shape=(64, 40), spread=0.1):
    rng = np.random.default_rng(seed)
    rollout = -rng.exponential(0.7, shape)
    train = np.minimum(rollout + rng.normal(0, spread, shape), 0)
    mask = np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (shape[0], 1))
    return rollout, train, mask


def test_it_says_what_an_audit_says_of_the_same_tokens():
    rollout, train, mask = batch()
    found = drift_metrics(rollout, train, mask)
    offsets = np.concatenate([[0], mask.sum(1).cumsum()])
    t, r = train[mask], rollout[mask]
    audit = summarise_tokens(t - r, r, t, offsets, np.arange(len(mask)))
    assert found["mismatch/k3"] == pytest.approx(audit.k3.value, rel=1e-12)
    assert found["mismatch/mean_abs"] == pytest.approx(audit.mean_abs_log_ratio.value, rel=1e-12)
    log_weight = np.where(mask, train - rollout, 0).sum(1)
    assert found["mismatch/k_hat"] == pytest.approx(pareto_k(log_weight).value)
    assert found["mismatch/tokens"] == mask.sum() and found["mismatch/sequences"] == 64


def test_what_is_masked_out_is_never_read():
    rollout, train, mask = batch(1)
    plain = drift_metrics(rollout, train, mask)
    spoilt = drift_metrics(np.where(mask, rollout, np.nan), np.where(mask, train, 7.0), mask)
    assert plain == spoilt


def test_tensors_on_a_device_in_any_dtype_are_read():
    rollout, train, mask = batch(2)
    tensors = [torch.tensor(values).float() for values in (rollout, train)]
    tensors[1].requires_grad_()
    found = drift_metrics(*tensors, torch.tensor(mask).int(), prefix="p/")
    assert found["p/k3"] == pytest.approx(drift_metrics(rollout, train, mask)["mismatch/k3"], rel=1e-4)
    half = drift_metrics(tensors[0].bfloat16(), tensors[0].bfloat16(), torch.tensor(mask))
    assert half["mismatch/max_abs"] == 0


def test_missing_log_probabilities_are_counted_and_left_out():
    rollout, train, mask = batch(3)
    mask[5, :2] = True
    rollout[5, 1] = np.nan
    found = drift_metrics(rollout, train, mask)
    assert found["mismatch/missing_tokens"] == 1
    assert found["mismatch/tokens"] == mask.sum() - 1 and found["mismatch/sequences"] == 63
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("kept", [0, 1])
def test_what_a_small_batch_does_not_have_is_left_out(kept):
    rollout, train, mask = batch(4, shape=(1, 3))
    found = drift_metrics(rollout, train, mask & (np.arange(3) < kept))
    assert found["mismatch/tokens"] == kept
    assert "mismatch/k_hat" not in found and "mismatch/log_w_std" not in found
    assert ("mismatch/k3" in found) is bool(kept)


def test_shapes_that_do_not_fit_are_refused():
    rollout, train, mask = batch()
    with pytest.raises(ConfigError, match=r"\[sequences, tokens\]"):
        drift_metrics(rollout, train[:, :-1], mask)


def test_batches_of_different_widths_become_one():
    first, second = batch(5, shape=(3, 4)), batch(6, shape=(2, 7))
    merged = drift_metrics(*merge_rows([first, second]))
    tokens = [np.where(m, t - r, 0)[m] for r, t, m in (first, second)]
    assert merged["mismatch/max_abs"] == np.abs(np.concatenate(tokens)).max()


def test_a_verl_batch_without_rollout_log_probs_says_which_setting_keeps_them():
    rollout, train, mask = (torch.tensor(values) for values in batch())
    whole = {"rollout_log_probs": rollout, "old_log_probs": train, "response_mask": mask}
    assert mismatch_metrics(whole)["mismatch/tokens"] == int(mask.sum())
    with pytest.raises(ConfigError) as caught:
        mismatch_metrics({key: value for key, value in whole.items() if key != "rollout_log_probs"})
    assert "calculate_log_probs=true" in caught.value.hint
