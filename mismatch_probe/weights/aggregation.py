"""From token losses to one number: the ways that trainers use, which weigh response lengths differently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from mismatch_probe.errors import ConfigError
from mismatch_probe.weights.ratios import Ratios

if TYPE_CHECKING:
    import torch

Aggregation = Literal[
    "token-mean", "token-sum", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"
]


def aggregate(
    token_loss: torch.Tensor,
    ratios: Ratios,
    aggregation: Aggregation,
    *,
    num_tokens: float | None = None,
    num_sequences: float | None = None,
    horizon: float | None = None,
) -> torch.Tensor:
    """Reduces token losses that are 0 where masked.

    token-mean: sum / tokens. token-sum: the sum. seq-mean-token-mean: mean over sequences of the mean over
    tokens. seq-mean-token-sum: mean over sequences of the sum. seq-mean-token-sum-norm (Dr. GRPO): that,
    divided by a constant length. Sequences without a token do not count. An empty batch has loss 0.

    Args:
        token_loss: One a token, in the batch's shape or flat.
        ratios: The batch's offsets and lengths.
        aggregation: One of the ways above.
        num_tokens: Replaces the count of tokens in token-mean (the global batch's).
        num_sequences: Replaces the count of sequences in the others.
        horizon: The constant length; None takes the longest response of the batch.

    Raises:
        ConfigError: Unknown way, or a count that is not positive.
    """
    if aggregation not in get_args(Aggregation):
        raise ConfigError(
            f"unknown aggregation {aggregation!r}", hint=f"one of {', '.join(get_args(Aggregation))}"
        )
    for name, count in (("num_tokens", num_tokens), ("num_sequences", num_sequences), ("horizon", horizon)):
        if count is not None and not count > 0:
            raise ConfigError(f"{name} must be positive, not {count}")
    flat = token_loss.reshape(-1)
    if aggregation == "token-sum":
        return flat.sum()
    lengths = ratios.lengths.to(flat.dtype)
    if aggregation == "token-mean":
        return flat.sum() / (num_tokens or lengths.sum().clamp(min=1.0))
    sums = flat.new_zeros(len(lengths)).index_add(0, ratios.segment, flat)
    count = num_sequences or (lengths > 0).sum().clamp(min=1)
    if aggregation == "seq-mean-token-mean":
        return (sums / lengths.clamp(min=1.0)).sum() / count
    total = sums.sum() / count
    return total if aggregation == "seq-mean-token-sum" else total / (horizon or lengths.max().clamp(min=1.0))
