"""What must hold for every method in every variant and framework's guise, whatever the log-ratios are."""

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

from mismatch_probe.weights import (
    FRAMEWORKS,
    Batch,
    WeightMethod,
    available_methods,
    describe_methods,
    framework_methods,
    get_method,
    get_method_as_coded,
)

METHODS = available_methods()
# Weights without an upper bound: they must saturate instead of overflowing.
UNBOUNDED = set(
    "token_is seq_is prefix_is ppo_clip dapo gmpo drpo m2po dppo_tv dppo_kl prime_dppo".split()  # noqa: SIM905
)


def every_guise() -> dict[str, WeightMethod]:
    """Every method with its defaults, with each word of each hyperparameter, and as each framework codes it."""
    made: dict[str, WeightMethod] = {}
    for row in describe_methods():
        made[row.name] = get_method(row.name)
        for variant in row.variants:
            made[f"{row.name}:{variant.parameter}={variant.value}"] = get_method(
                row.name, **{variant.parameter: variant.value}
            )
        bounded = {"cap": None} if "cap" in row.parameters and row.name not in ("cispo", "minirl") else {}
        made[f"{row.name}:uncapped"] = get_method(row.name, **bounded)
    for framework in FRAMEWORKS:
        for name in framework_methods(framework):
            made[f"{framework}/{name}"] = get_method_as_coded(framework, name)
    # Equal ones once: a framework without quirks is the default.
    return dict({method: (label, method) for label, method in reversed(made.items())}.values())


GUISES = every_guise()


def batch_from(
    ratios: list[np.ndarray], advantages: list[float], *, old: bool = False, masks: Any = None
) -> Batch:
    """Sequences with these log-ratios and plausible log-probabilities; train_logprobs is a leaf."""
    rollout = [np.minimum(-0.5, -0.5 - row) for row in ratios]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ratios])])
    flat, mu = np.concatenate(ratios), np.concatenate(rollout)
    return Batch.from_arrays(
        torch.tensor(mu + flat, requires_grad=True),
        mu,
        offsets,
        np.repeat(advantages, np.diff(offsets)),
        old_logprobs=mu + flat / 2 if old else None,
        mask=masks,
    )


rows = st.lists(
    hnp.arrays(np.float64, st.integers(0, 12), elements=st.floats(-1e4, 1e4)), min_size=1, max_size=5
)


@settings(max_examples=25, deadline=None)
@given(rows, st.booleans(), st.data())
def test_nothing_overflows_warns_or_gives_nan(ratios: list[np.ndarray], old: bool, data: Any) -> None:
    advantages = data.draw(
        st.lists(st.sampled_from([-2.0, 0.0, 1.5]), min_size=len(ratios), max_size=len(ratios))
    )
    masks = data.draw(hnp.arrays(np.bool_, sum(len(row) for row in ratios)))
    batch = batch_from(ratios, advantages, old=old, masks=masks)
    inside = torch.tensor(masks)
    limit = math.sqrt(torch.finfo(torch.float64).max)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for label, method in GUISES.items():
            phi = method.coefficients(batch)
            assert phi.dtype == torch.float64 and phi.shape == batch.train_logprobs.shape
            assert bool(phi.isfinite().all()) and not bool(phi[~inside].any()), label
            assert method.name == "drpo" or bool((phi >= 0).all()), label
            loss = method.loss(batch, "token-mean")
            assert math.isfinite(loss.item()), label
            (got,) = torch.autograd.grad(loss, batch.train_logprobs)
            expect = -(phi * batch.advantages).clamp(-limit, limit) / max(int(inside.sum()), 1)
            torch.testing.assert_close(got, expect, rtol=1e-12, atol=0, msg=label)


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
        for label, method in GUISES.items() if length < 100 else ((n, get_method(n)) for n in METHODS):
            phi = method.coefficients(batch)
            assert bool(phi.isfinite().all()), label
            loss = method.loss(batch)
            (gradient,) = torch.autograd.grad(loss, batch.train_logprobs)
            assert math.isfinite(loss.item()) and bool(gradient.isfinite().all()), label
            if log_w == 0.0 and label in METHODS:
                expect = length if label == "luspo" else 1.0
                assert phi.tolist() == pytest.approx([expect] * (2 * length), rel=1e-12), label


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 100_000), st.floats(-1e4, 1e4), st.sampled_from([torch.float32, torch.bfloat16]))
def test_narrow_inputs_of_any_length_stay_finite(length: int, log_w: float, dtype: torch.dtype) -> None:
    """log W within +-1e4 over any length: what a trainer in float32 or bfloat16 hands over."""
    ratio = torch.full((length,), log_w / length)
    train = (torch.minimum(torch.tensor(-0.5), -0.5 - ratio) + ratio).to(dtype).requires_grad_()
    batch = Batch.from_arrays(train, (train.detach() - ratio).to(dtype), [0, length], [-1.5])
    for name in METHODS if length < 20_000 else ("vespo", "seq_is", "gspo", "sapo", "token_tis", "m2po"):
        loss = get_method(name).loss(batch)
        (gradient,) = torch.autograd.grad(loss, train)
        assert math.isfinite(loss.item()) and bool(gradient.isfinite().all()), name


@pytest.mark.parametrize("name", METHODS)
def test_only_unbounded_methods_let_a_huge_ratio_through(name: str) -> None:
    """At a ratio of e^40, for either sign of A; GSPO and LUSPO stop at e^10."""
    batch = batch_from([np.array([40.0]), np.array([40.0])], [1.0, -1.0])
    peak = float(get_method(name).coefficients(batch).max())
    assert (peak > 1e6) == (name in UNBOUNDED)
    assert peak <= math.exp(40.0) * 1.1


def padded_like(packed: Batch, width: int) -> Batch:
    """The same sequences, right-padded with NaN."""
    rows = packed.num_sequences

    def pad(flat: torch.Tensor) -> torch.Tensor:
        out = torch.full((rows, width), float("nan"), dtype=flat.dtype)
        for i in range(rows):
            begin, end = int(packed.offsets[i]), int(packed.offsets[i + 1])
            out[i, : end - begin] = flat[begin:end]
        return out

    return Batch.from_padded(
        pad(packed.train_logprobs.detach()).requires_grad_(),
        pad(packed.rollout_logprobs),
        pad(packed.advantages),
        torch.arange(width) < packed.offsets.diff()[:, None],
        old_logprobs=None if packed.old_logprobs is None else pad(packed.old_logprobs),
    )


@pytest.mark.parametrize("label", GUISES)
@pytest.mark.parametrize("old", [False, True])
def test_padding_and_packing_change_nothing(label: str, old: bool) -> None:
    generator = np.random.default_rng(3)
    packed = batch_from([generator.normal(0, 0.2, size) for size in (5, 1, 9)], [1.0, -0.5, -1.0], old=old)
    batch, method = padded_like(packed, 11), GUISES[label]
    phi, wide = method.coefficients(packed), method.coefficients(batch)
    assert wide.shape == (3, 11)
    assert torch.equal(wide[batch.mask], phi)
    assert float(wide[~batch.mask].abs().sum()) == 0.0
    for aggregation in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"):
        loss, same = method.loss(batch, aggregation), method.loss(packed, aggregation)
        assert loss.item() == pytest.approx(same.item())
        (got,) = torch.autograd.grad(loss, batch.train_logprobs)
        (expect,) = torch.autograd.grad(same, packed.train_logprobs)
        torch.testing.assert_close(got[batch.mask], expect, rtol=1e-12, atol=0)
        assert not bool(got[~batch.mask].any())


@pytest.mark.parametrize("label", GUISES)
def test_empty_masks_and_zero_advantages_give_zero_loss(label: str) -> None:
    method = GUISES[label]
    train = torch.tensor([[-0.1, -2.0], [-0.3, -0.2]], dtype=torch.float64, requires_grad=True)
    for mask, advantages in (([[0, 0], [0, 0]], [1.0, -1.0]), ([[1, 1], [0, 0]], [0.0, 2.0])):
        batch = Batch.from_padded(train, [[-0.2, -1.0], [-0.3, -0.1]], advantages, mask)
        for aggregation in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"):
            loss = method.loss(batch, aggregation)
            (gradient,) = torch.autograd.grad(loss, train)
            assert loss.item() == 0.0 and float(gradient.abs().sum()) == 0.0
        assert bool(method.coefficients(batch).isfinite().all())
        assert not bool(method.coefficients(batch)[~batch.mask].any())


@pytest.mark.parametrize("label", GUISES)
def test_what_is_masked_does_not_matter(label: str) -> None:
    """A response with tokens masked weighs what it weighs without them."""
    ratio = np.array([0.05, 8.0, -0.1, -9.0, 0.02])
    masks = np.array([1, 0, 1, 0, 1], dtype=bool)
    for advantage in (1.0, -1.0):
        whole = GUISES[label].coefficients(batch_from([ratio], [advantage], old=True, masks=masks))
        short = GUISES[label].coefficients(batch_from([ratio[masks]], [advantage], old=True))
        torch.testing.assert_close(whole[torch.tensor(masks)], short, rtol=1e-12, atol=0)


@given(st.floats(-30, 30), st.floats(0.1, 5), st.floats(0.1, 5))
def test_the_vespo_weight_depends_only_on_the_sum(log_w: float, k: float, rate: float) -> None:
    method = get_method("vespo", k_pos=k, lambda_pos=rate)
    one = float(method.coefficients(batch_from([np.array([log_w])], [1.0]))[0])
    many = method.coefficients(batch_from([np.full(64, log_w / 64)], [1.0]))
    assert many.tolist() == pytest.approx([one] * 64, rel=1e-9, abs=1e-300)
    assert one <= (k / rate) ** k * math.exp(rate - k) * (1 + 1e-9)
