"""Gradients of the losses: against phi, and against autograd through each method's own objective."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from mismatch_probe.weights import Batch, available_methods, get_method

AGGREGATIONS = (
    "token-mean",
    "token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
)
LENGTHS = (4, 1, 7)
ADVANTAGES = (1.3, -0.7, -2.0)
ADVANTAGE_TENSOR = torch.tensor(ADVANTAGES, dtype=torch.float64)


def random_batch(dtype: torch.dtype = torch.float64, scale: float = 0.3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    rollout = [-torch.rand(n, generator=generator, dtype=torch.float64) * 3 - 0.6 for n in LENGTHS]
    train = [mu + scale * torch.randn(len(mu), generator=generator, dtype=torch.float64) for mu in rollout]
    flat = torch.cat(train).clamp(max=-1e-3).to(dtype).requires_grad_()
    return Batch.from_arrays(flat, torch.cat(rollout), torch.tensor([0, 4, 5, 12]), ADVANTAGE_TENSOR)


def gradient(loss: torch.Tensor, batch: Batch) -> torch.Tensor:
    (result,) = torch.autograd.grad(loss, batch.train_logprobs)
    return result


@pytest.mark.parametrize("name", available_methods())
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradient_is_minus_phi_advantage_over_normaliser(name: str, aggregation: str) -> None:
    batch = random_batch()
    method = get_method(name)
    lengths = torch.tensor(LENGTHS, dtype=torch.float64).repeat_interleave(torch.tensor(LENGTHS))
    normaliser = {
        "token-mean": torch.full_like(lengths, 12.0),
        "token-sum": torch.ones_like(lengths),
        "seq-mean-token-mean": 3.0 * lengths,
        "seq-mean-token-sum": torch.full_like(lengths, 3.0),
        "seq-mean-token-sum-norm": torch.full_like(lengths, 3.0 * 7.0),
    }[aggregation]
    expect = -method.coefficients(batch) * batch.advantages / normaliser
    got = gradient(method.loss(batch, aggregation), batch)
    torch.testing.assert_close(got, expect, rtol=1e-12, atol=0)


def ratio(batch: Batch) -> torch.Tensor:
    return (batch.train_logprobs - batch.rollout_logprobs).exp()


def ppo(batch: Batch, low: float, high: float, cap: float | None = None) -> torch.Tensor:
    rho, adv = ratio(batch), batch.advantages
    value = torch.minimum(rho * adv, rho.clamp(1 - low, 1 + high) * adv)
    return value if cap is None else torch.where(adv < 0, torch.maximum(value, cap * adv), value)


def by_sequence(batch: Batch, per_sequence: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    pieces = (batch.train_logprobs - batch.rollout_logprobs).split(list(LENGTHS))
    return torch.stack([per_sequence(piece) for piece in pieces])


def gspo_objective(batch: Batch) -> torch.Tensor:
    s, adv = by_sequence(batch, lambda row: row.mean().exp()), ADVANTAGE_TENSOR
    return torch.minimum(s * adv, s.clamp(1 - 3e-4, 1 + 4e-4) * adv).mean()


def gmpo_objective(batch: Batch) -> torch.Tensor:
    terms = []
    for row, adv in zip(
        (batch.train_logprobs - batch.rollout_logprobs).split(list(LENGTHS)), ADVANTAGES, strict=True
    ):
        clamped = row.clamp(max=0.4) if adv > 0 else row.clamp(min=-0.4)
        terms.append(adv * clamped.mean().exp())
    return torch.stack(terms).mean()


def sapo_objective(batch: Batch) -> torch.Tensor:
    tau = torch.where(
        batch.advantages > 0, torch.tensor(1.0).double(), torch.tensor(1.05, dtype=torch.float64)
    )
    terms = 4 / tau * torch.sigmoid(tau * (ratio(batch) - 1)) * batch.advantages
    return torch.stack([row.mean() for row in terms.split(list(LENGTHS))]).mean()


def drpo_objective(batch: Batch) -> torch.Tensor:
    rho, adv, mu = ratio(batch), batch.advantages, batch.rollout_logprobs.exp()
    return (adv * rho - adv.abs() * mu * (rho - 1) ** 2 / (2 * 12.5)).mean()


def vespo_surrogate(batch: Batch) -> torch.Tensor:
    """Mean of A f(W) T / tokens; W f'(W) = phi, and f has a closed form at the default hyperparameters."""
    w = by_sequence(batch, lambda row: row.sum().exp())
    positive = math.e**3 / 9 * (1 - (1 + 3 * w) * (-3 * w).exp())
    negative = math.e**2 / 4 * (1 - (1 + 2 * w + 2 * w * w) * (-2 * w).exp())
    adv = ADVANTAGE_TENSOR
    return (adv * torch.where(adv > 0, positive, negative)).sum() / 12


OBJECTIVES: dict[str, Callable[[Batch], torch.Tensor]] = {
    "ppo_clip": lambda b: ppo(b, 0.2, 0.2).mean(),
    "dapo": lambda b: ppo(b, 0.2, 0.28).mean(),
    "dual_clip": lambda b: ppo(b, 0.2, 0.2, cap=3.0).mean(),
    "two_sided": lambda b: ppo(b, 0.2, 0.28, cap=4.0).mean(),
    "gspo": gspo_objective,
    "gmpo": gmpo_objective,
    "sapo": sapo_objective,
    "drpo": drpo_objective,
    "token_is": lambda b: (ratio(b) * b.advantages).mean(),
    "vespo": vespo_surrogate,
    "seq_is": lambda b: (by_sequence(b, lambda row: row.sum().exp()) * ADVANTAGE_TENSOR).sum() / 12,
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("scale", [0.002, 0.2, 1.0])
def test_gradient_is_that_of_the_methods_own_objective(name: str, scale: float) -> None:
    for seed in range(4):
        batch = random_batch(scale=scale, seed=seed)
        own = gradient(-OBJECTIVES[name](batch), batch)
        got = gradient(get_method(name).loss(batch), batch)
        torch.testing.assert_close(got, own, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_inputs(dtype: torch.dtype) -> None:
    wide, narrow = random_batch(), random_batch(dtype)
    same = Batch.from_arrays(
        narrow.train_logprobs.detach().double(), wide.rollout_logprobs, wide.offsets, wide.advantages
    )
    for name in available_methods():
        loss = get_method(name).loss(narrow)
        assert loss.dtype == torch.float32
        # phi is worked out in float64, so what remains is the rounding of the products to float32.
        assert loss.item() == pytest.approx(get_method(name).loss(same).item(), rel=1e-5, abs=1e-6)
        got = gradient(loss, narrow)
        assert got.dtype == dtype and bool(got.isfinite().all())


def test_float32_loss_survives_an_unbounded_weight() -> None:
    train = torch.tensor([-1.0, -0.5], requires_grad=True)
    batch = Batch.from_arrays(train, torch.tensor([-900.0, -900.0]), [0, 2], [1e3])
    loss = get_method("seq_is").loss(batch)
    assert bool(loss.isfinite()) and bool(gradient(loss, batch).isfinite().all())


def test_global_counts_make_micro_batches_add_up() -> None:
    whole = random_batch()
    parts = [
        Batch.from_arrays(
            whole.train_logprobs[begin:end],
            whole.rollout_logprobs[begin:end],
            [0, end - begin],
            whole.advantages[begin:end],
        )
        for begin, end in ((0, 4), (4, 5), (5, 12))
    ]
    method = get_method("vespo")
    assert method.loss(whole, "token-mean").item() == pytest.approx(
        sum(method.loss(part, "token-mean", num_tokens=12).item() for part in parts)
    )
    assert method.loss(whole, "seq-mean-token-mean").item() == pytest.approx(
        sum(method.loss(part, "seq-mean-token-mean", num_sequences=3).item() for part in parts)
    )
