"""Divergences between two policies that need only the sampled token's probability under each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def probability(logprob: torch.Tensor) -> torch.Tensor:
    """exp(log p), at most 1."""
    return logprob.clamp(max=0.0).exp()


def total_variation(train: torch.Tensor, rollout: torch.Tensor) -> torch.Tensor:
    """|pi - mu| of the sampled token: total variation of the two outcomes "this token" and "another".

    Args:
        train: log pi, float64.
        rollout: log mu, float64.
    """
    return (probability(train) - probability(rollout)).abs()


def binary_kl(
    of: torch.Tensor, against: torch.Tensor, *, margin: float = 0.0, offset: float = 0.0
) -> torch.Tensor:
    """KL of the two-outcome distributions: p log(p / q) + (1 - p) log((1 - p) / (1 - q)), in nats.

    Args:
        of: log p, float64.
        against: log q, float64.
        margin: Probabilities are kept within [margin, 1 - margin] first (AReaL 1e-8, OpenRLHF 1e-6).
        offset: Added to 1 - p and 1 - q inside the logarithm (verl and SkyRL 1e-8).

    Returns:
        At least 0; +inf where q is 1 and p is not, without margin and offset.
    """
    import torch

    if margin > 0:
        low, high = math.log(margin), math.log1p(-margin)
        of, against = of.clamp(low, high), against.clamp(low, high)
    p, rest = probability(of), -_expm1(of)
    if offset > 0:
        log_rest_ratio = (rest + offset).log() - (offset - _expm1(against)).log()
    else:
        log_rest_ratio = _log_rest(of) - _log_rest(against)
    # 0 log 0 = 0: with p = 1 the second outcome has no weight, whatever q says of it.
    second = torch.where(rest > 0, rest * log_rest_ratio, 0.0)
    return (p * (of - against) + second).clamp(min=0.0)


def logit_displacement(train: torch.Tensor, rollout: torch.Tensor) -> torch.Tensor:
    """logit(pi) - logit(mu) of the sampled token, in nats: noise of the logits, whatever the probability."""
    return (train - rollout) - (_log_rest(train) - _log_rest(rollout))


def _expm1(logprob: torch.Tensor) -> torch.Tensor:
    return logprob.clamp(max=0.0).expm1()


def _log_rest(logprob: torch.Tensor) -> torch.Tensor:
    """log(1 - p), without losing digits for p near 0 or 1."""
    import torch

    logprob = logprob.clamp(max=0.0)
    return torch.where(logprob > -0.6931471805599453, (-logprob.expm1()).log(), torch.log1p(-logprob.exp()))
