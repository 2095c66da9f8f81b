"""What must hold for every method, whatever the log-ratios are."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mismatch_probe.weights import Batch, available_methods, get_method

METHODS = available_methods()
# Weights without an upper bound: they must saturate instead of overflowing.
UNBOUNDED = set(
    "token_is seq_is prefix_is ppo_clip dapo gmpo drpo m2po dppo_tv dppo_kl prime_dppo".split()  # noqa: SIM905
)


def batch_from(ratios: list[np.ndarray], advantages: list[float], *, old: bool = False) -> Batch:
    """Sequences with these log-ratios and plausible log-probabilities."""
    rollout = [np.minimum(-0.5, -0.5 - row) for row in ratios]
    train = [mu + row for mu, row in zip(rollout, ratios, strict=True)]
    return Batch.from_sequences(
        train_logprobs=train,
        rollout_logprobs=rollout,
        advantages=advantages,
        old_logprobs=[mu + row / 2 for mu, row in zip(rollout, ratios, strict=True)] if old else None,
    )


rows = st.lists(
    hnp.arrays(np.float64, st.integers(0, 12), elements=st.floats(-1e4, 1e4)), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(rows, st.booleans(), st.data())
def test_no_method_overflows_warns_or_gives_nan(ratios: list[np.ndarray], old: bool, data: Any) -> None:
    advantages = data.draw(
        st.lists(st.sampled_from([-2.0, 0.0, 1.5]), min_size=len(ratios), max_size=len(ratios))
    )
    batch = batch_from(ratios, advantages, old=old)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in METHODS:
            method = get_method(name)
            phi = method.coefficients(batch)
            assert phi.dtype == torch.float64 and phi.shape == batch.train_logprobs.shape
            assert bool(phi.isfinite().all()), name
            assert name == "drpo" or bool((phi >= 0).all()), name
            assert math.isfinite(method.loss(batch).item()), name


@pytest.mark.parametrize(
    ("log_w", "length"),
    [(w, t) for w in (-1e4, -745.0, -20.0, 0.0, 20.0, 709.9, 1e4) for t in (1, 50)]
    + [(-1e4, 100_000), (1e4, 100_000)],
)
def test_extreme_weights_at_every_length(log_w: float, length: int) -> None:
    row = np.full(length, log_w / length)
    batch = batch_from([row, row], [1.0, -1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in METHODS:
            phi = get_method(name).coefficients(batch)
            assert bool(phi.isfinite().all()), name
            if log_w == 0.0:
                expect = length if name == "luspo" else 1.0
                assert phi.tolist() == pytest.approx([expect] * (2 * length), rel=1e-12), name


@pytest.mark.parametrize("name", METHODS)
def test_only_unbounded_methods_let_a_huge_ratio_through(name: str) -> None:
    """At a ratio of e^40, for either sign of A; GSPO and LUSPO stop at e^10."""
    batch = batch_from([np.array([40.0]), np.array([40.0])], [1.0, -1.0])
    peak = float(get_method(name).coefficients(batch).max())
    assert (peak > 1e6) == (name in UNBOUNDED)
    assert peak <= math.exp(40.0) * 1.1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("old", [False, True])
def test_padding_masks_and_packing_change_nothing(name: str, old: bool) -> None:
    generator = np.random.default_rng(3)
    ratios = [generator.normal(0, 0.2, size) for size in (5, 1, 9)]
    advantages = [1.0, -0.5, -1.0]
    packed = batch_from(ratios, advantages, old=old)
    phi = get_method(name).coefficients(packed)
    width = 11
    padded = {
        key: torch.full((3, width), float("nan"), dtype=torch.float64) for key in ("train", "rollout", "old")
    }
    mask = torch.zeros(3, width, dtype=torch.bool)
    for i in range(3):
        begin, end = int(packed.offsets[i]), int(packed.offsets[i + 1])
        mask[i, : end - begin] = True
        padded["train"][i, : end - begin] = packed.train_logprobs[begin:end]
        padded["rollout"][i, : end - begin] = packed.rollout_logprobs[begin:end]
        if packed.old_logprobs is not None:
            padded["old"][i, : end - begin] = packed.old_logprobs[begin:end]
    batch = Batch.from_padded(
        padded["train"],
        padded["rollout"],
        torch.tensor(advantages),
        mask,
        old_logprobs=padded["old"] if old else None,
    )
    wide = get_method(name).coefficients(batch)
    assert wide.shape == (3, width)
    assert torch.equal(wide[mask], phi)
    assert float(wide[~mask].abs().sum()) == 0.0
    method = get_method(name)
    for aggregation in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"):
        assert float(method.loss(batch, aggregation)) == pytest.approx(
            float(method.loss(packed, aggregation))
        )


@pytest.mark.parametrize("name", METHODS)
def test_empty_mask_and_zero_advantages_give_zero_loss(name: str) -> None:
    train = torch.tensor([[-0.1, -2.0]], dtype=torch.float64, requires_grad=True)
    batch = Batch.from_padded(train, [[-0.2, -1.0]], [1.0], [[0, 0]])
    loss = get_method(name).loss(batch)
    loss.backward()
    assert loss.item() == 0.0 and train.grad is not None and float(train.grad.abs().sum()) == 0.0
    assert float(get_method(name).coefficients(batch).abs().sum()) == 0.0
    still = batch_from([np.array([0.1, -0.1])], [0.0])
    assert float(get_method(name).loss(still)) == 0.0
    assert bool(get_method(name).coefficients(still).isfinite().all())


@given(st.floats(-30, 30), st.floats(0.1, 5), st.floats(0.1, 5))
def test_the_vespo_weight_depends_only_on_the_sum(log_w: float, k: float, rate: float) -> None:
    method = get_method("vespo", k_pos=k, lambda_pos=rate)
    one = float(method.coefficients(batch_from([np.array([log_w])], [1.0]))[0])
    many = method.coefficients(batch_from([np.full(64, log_w / 64)], [1.0]))
    assert many.tolist() == pytest.approx([one] * 64, rel=1e-9, abs=1e-300)
    assert one <= (k / rate) ** k * math.exp(rate - k) * (1 + 1e-9)
