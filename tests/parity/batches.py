"""Ragged batches of log-probabilities, and how two gradients are compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mismatch_probe.weights import Batch, WeightMethod
from mismatch_probe.weights.aggregation import Aggregation

LENGTHS = (13, 5, 1, 9, 12, 3, 13, 7)
WIDTH = 15
AGGREGATIONS: tuple[Aggregation, ...] = (
    "token-mean",
    "token-sum",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
)
ADVANTAGES = (1.3, -0.7, 0.4, -2.0, 0.9, -1.1, -0.2, 0.6)


@dataclass(frozen=True)
class Tokens:
    """Padded [sequences, width] tensors; `train` is a leaf. What the mask leaves out holds numbers like the rest."""

    train: torch.Tensor
    old: torch.Tensor
    rollout: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor

    @property
    def per_token(self) -> torch.Tensor:
        """The advantages as verl passes them, [sequences, width]."""
        return self.advantages[:, None].expand(self.train.shape)

    @property
    def counts(self) -> torch.Tensor:
        """The mask as a number, in the dtype of the log-probabilities."""
        return self.mask.to(self.train.dtype)

    def batch(self, *, bypass: bool = False) -> Batch:
        """The same tokens for a method; `bypass` leaves pi_old out."""
        old = None if bypass else self.old
        return Batch.from_padded(self.train, self.rollout, self.advantages, self.mask, old_logprobs=old)


def draw(
    dtype: torch.dtype,
    *,
    mismatch: float,
    staleness: float,
    lengths: tuple[int, ...] = LENGTHS,
    seed: int = 0,
) -> Tokens:
    """Responses whose log-ratios are normal: `mismatch` the spread of pi_old / mu, `staleness` of pi / pi_old.

    Rounded to `dtype` before anything is computed, so that both sides of a comparison see the same numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(len(lengths), WIDTH, generator=generator, dtype=torch.float64)

    rollout = -0.4 - 2.5 * torch.rand(len(lengths), WIDTH, generator=generator, dtype=torch.float64)
    old = (rollout + mismatch * normal()).clamp(max=-1e-3)
    train = (old + staleness * normal()).clamp(max=-1e-3)
    return Tokens(
        train=train.to(dtype).requires_grad_(),
        old=old.to(dtype),
        rollout=rollout.to(dtype),
        mask=torch.arange(WIDTH) < torch.tensor(lengths)[:, None],
        advantages=torch.tensor(ADVANTAGES[: len(lengths)], dtype=torch.float64).to(dtype),
    )


def slope(loss: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """The gradient of a loss in log pi, [sequences, width]."""
    (gradient,) = torch.autograd.grad(loss, tokens.train)
    return gradient


def discrepancy(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    """The largest difference over the largest of theirs; a difference of shapes or an empty gradient is an error."""
    assert theirs.shape == ours.shape
    theirs, ours = theirs.to(torch.float64), ours.to(torch.float64)
    assert bool(theirs.isfinite().all() and ours.isfinite().all())
    largest = float(theirs.abs().max())
    assert largest > 0, "the framework's gradient is 0 everywhere: nothing is compared"
    return float((theirs - ours).abs().max()) / largest


def kept_share(method: WeightMethod, batch: Batch) -> float:
    """Share of the tokens that count whose phi is not 0."""
    return float((method.coefficients(batch)[batch.mask] != 0).to(torch.float64).mean())
