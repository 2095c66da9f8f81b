"""Gradients of the losses: against phi, and against autograd through each method's own objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mismatch_probe.errors import ConfigError
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


def normalisers(lengths: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each aggregation divides a token's loss by; `lengths` is that of each token's sequence."""
    return {
        "token-mean": torch.full_like(lengths, 12.0),
        "token-sum": torch.ones_like(lengths),
        "seq-mean-token-mean": 3.0 * lengths,
        "seq-mean-token-sum": torch.full_like(lengths, 3.0),
        "seq-mean-token-sum-norm": torch.full_like(lengths, 3.0 * 7.0),
    }


def padded(batch: Batch) -> Batch:
    """The same sequences in rows of 9, with infinities where nothing is."""
    where = torch.arange(9) < torch.tensor(LENGTHS)[:, None]

    def pad(flat: torch.Tensor) -> torch.Tensor:
        return torch.full(where.shape, -math.inf, dtype=flat.dtype).masked_scatter(where, flat)

    return Batch.from_padded(
        pad(batch.train_logprobs.detach()).requires_grad_(),
        pad(batch.rollout_logprobs),
        pad(batch.advantages),
        where,
        old_logprobs=None if batch.old_logprobs is None else pad(batch.old_logprobs),
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2**-7)]
)
def test_gradient_is_minus_phi_advantage_over_normaliser(
    dtype: torch.dtype, rtol: float, layout: str, aggregation: Any
) -> None:
    """The tolerance is the rounding of the gradient to the type of the leaf."""
    batch = random_batch(dtype)
    if layout == "padded":
        batch = padded(batch)
    lengths = torch.tensor(LENGTHS, dtype=torch.float64).repeat_interleave(torch.tensor(LENGTHS))
    for name in available_methods():
        method = get_method(name)
        weight = (method.coefficients(batch) * batch.advantages)[batch.mask]
        got = gradient(method.loss(batch, aggregation), batch)
        assert got.dtype == dtype
        assert not bool(got[~batch.mask].any())
        expect = -weight / normalisers(lengths)[aggregation]
        torch.testing.assert_close(got[batch.mask].double(), expect, rtol=rtol, atol=1e-30, msg=name)


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
def test_phi_of_narrow_inputs_is_that_of_the_same_numbers_in_float64(dtype: torch.dtype) -> None:
    narrow = random_batch(dtype)
    same = Batch.from_arrays(
        narrow.train_logprobs.detach().double(), narrow.rollout_logprobs, narrow.offsets, narrow.advantages
    )
    for name in available_methods():
        assert torch.equal(get_method(name).coefficients(narrow), get_method(name).coefficients(same)), name
        loss = get_method(name).loss(narrow)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(get_method(name).loss(same).item(), rel=1e-5, abs=1e-6)


def test_float32_loss_survives_an_unbounded_weight() -> None:
    train = torch.tensor([-1.0, -0.5], requires_grad=True)
    batch = Batch.from_arrays(train, torch.tensor([-900.0, -900.0]), [0, 2], [1e3])
    loss = get_method("seq_is").loss(batch)
    assert bool(loss.isfinite()) and bool(gradient(loss, batch).isfinite().all())


def micro_batches(whole: Batch) -> list[Batch]:
    """Each sequence of a batch on its own, over the same leaf."""
    return [
        Batch.from_arrays(
            whole.train_logprobs[begin:end],
            whole.rollout_logprobs[begin:end],
            [0, end - begin],
            whole.advantages[begin:end],
        )
        for begin, end in ((0, 4), (4, 5), (5, 12))
    ]


GLOBAL_COUNTS: dict[Any, dict[str, float]] = {
    "token-mean": {"num_tokens": 12},
    "token-sum": {},
    "seq-mean-token-mean": {"num_sequences": 3},
    "seq-mean-token-sum": {"num_sequences": 3},
    "seq-mean-token-sum-norm": {"num_sequences": 3, "horizon": 7},
}


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_global_counts_make_micro_batches_add_up(aggregation: Any) -> None:
    whole = random_batch(scale=0.8)
    for name in available_methods():
        if name == "m2po":  # whether a token stays depends on the others of its batch
            continue
        method = get_method(name)
        parts = [
            method.loss(part, aggregation, **GLOBAL_COUNTS[aggregation]) for part in micro_batches(whole)
        ]
        torch.testing.assert_close(
            gradient(torch.stack(parts).sum(), whole),
            gradient(method.loss(whole, aggregation), whole),
            rtol=1e-12,
            atol=1e-300,
            msg=name,
        )


@pytest.mark.parametrize(("name", "options"), [("m2po", {}), ("token_tis", {"normalise": "mean"})])
def test_methods_that_judge_a_batch_do_not_add_up(name: str, options: dict[str, Any]) -> None:
    whole = random_batch(scale=0.8)
    method = get_method(name, **options)
    parts = torch.stack([method.loss(part, num_tokens=12) for part in micro_batches(whole)])
    apart = gradient(parts.sum(), whole) - gradient(method.loss(whole), whole)
    assert float(apart.abs().max()) > 1e-3


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_sequences_without_a_token_do_not_count(aggregation: Any) -> None:
    batch = random_batch()
    longer = Batch.from_arrays(
        batch.train_logprobs, batch.rollout_logprobs, [0, 0, 4, 5, 5, 12], batch.advantages
    )
    assert get_method("vespo").loss(longer, aggregation).item() == pytest.approx(
        get_method("vespo").loss(batch, aggregation).item()
    )


@pytest.mark.parametrize("count", ["num_tokens", "num_sequences", "horizon"])
def test_counts_must_be_positive(count: str) -> None:
    with pytest.raises(ConfigError, match=count):
        get_method("vespo").loss(random_batch(), "token-mean", **{count: 0})  # type: ignore[arg-type]


def test_prime_rl_regulariser_is_differentiable_and_covers_every_token() -> None:
    batch = random_batch()
    drift = (batch.train_logprobs - batch.rollout_logprobs).detach()
    for name in ("prime_dppo", "ipo"):
        got = gradient(get_method(name, kl_tau=0.5).regulariser(batch), batch)  # type: ignore[attr-defined]
        torch.testing.assert_close(got, 2 * 0.5 * drift / 12)
