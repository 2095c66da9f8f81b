"""The log-ratios between the policies of a batch, detached and in float64, with sums over sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Reads = Literal["none", "train/rollout", "train/old", "old/rollout"]

# exp saturates here, at about 1e299: that leaves room for a product with advantages and for sums over 1e8
# tokens in float64. It only keeps unbounded weights (plain importance sampling) finite.
LOG_CEILING = 690.0


def by_sign(positive: torch.Tensor, if_positive: float, if_negative: float) -> torch.Tensor:
    """One of two numbers per entry, in float64 (torch.where on Python numbers would round to float32)."""
    import torch

    high = torch.full(positive.shape, if_positive, dtype=torch.float64, device=positive.device)
    return high.masked_fill(~positive, if_negative)


def bounded_exp(log_value: torch.Tensor) -> torch.Tensor:
    """exp(log_value), saturating at exp(`LOG_CEILING`) instead of overflowing."""
    return log_value.clamp(max=LOG_CEILING).exp()


@dataclass(frozen=True, slots=True, eq=False)
class Ratios:
    """What a method may look at: flat float64 tensors without a graph. Masked tokens have log-ratio 0.

    Attributes:
        train: log pi, [tokens].
        rollout: log mu, [tokens].
        old: log pi_old, [tokens], or None.
        advantages: [tokens].
        mask: bool [tokens].
        segment: Index of each token's sequence, int64 [tokens].
        offsets: int64 [sequences + 1].
        lengths: Tokens that take part, float64 [sequences].
    """

    train: torch.Tensor
    rollout: torch.Tensor
    old: torch.Tensor | None
    advantages: torch.Tensor
    mask: torch.Tensor
    segment: torch.Tensor
    offsets: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(
        cls,
        *,
        train: torch.Tensor,
        rollout: torch.Tensor,
        old: torch.Tensor | None,
        advantages: torch.Tensor,
        mask: torch.Tensor,
        offsets: torch.Tensor,
    ) -> Ratios:
        """Flattens, detaches and widens; what is masked becomes 0."""
        import torch

        keep = mask.reshape(-1)

        def clean(values: torch.Tensor) -> torch.Tensor:
            return values.detach().reshape(-1).to(torch.float64).masked_fill(~keep, 0.0)

        counts = offsets.diff()
        segment = torch.arange(len(counts), device=offsets.device).repeat_interleave(counts)
        lengths = torch.zeros(len(counts), dtype=torch.float64, device=offsets.device)
        lengths.index_add_(0, segment, keep.to(torch.float64))
        return cls(
            train=clean(train),
            rollout=clean(rollout),
            old=None if old is None else clean(old),
            advantages=clean(advantages),
            mask=keep,
            segment=segment,
            offsets=offsets,
            lengths=lengths,
        )

    def log_ratio(self, reads: Reads) -> torch.Tensor:
        """The per-token log-ratio a method reads, in nats, [tokens].

        "train/rollout" is log pi - log mu. "train/old" is log pi - log pi_old, and without pi_old the trainer
        bypasses it and uses mu in its place. "old/rollout" is log pi_old - log mu, and without pi_old, pi
        stands for it: the weights are those of the rollout, so the whole ratio is mismatch.
        """
        import torch

        if reads == "none":
            return torch.zeros_like(self.train)
        if self.old is None or reads == "train/rollout":
            return self.train - self.rollout
        return self.train - self.old if reads == "train/old" else self.old - self.rollout

    def update(self) -> torch.Tensor:
        """Log pi - log pi_old, and 0 without pi_old: the staleness factor of decoupled methods, [tokens]."""
        import torch

        return torch.zeros_like(self.train) if self.old is None else self.train - self.old

    @property
    def positive(self) -> torch.Tensor:
        """True where A >= 0, [tokens]; A = 0 takes the positive branch, and its gradient is 0 either way."""
        return self.advantages >= 0

    def sequence_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of the tokens that take part, [sequences]."""
        total = self.lengths.new_zeros(len(self.lengths))
        return total.index_add_(0, self.segment, values.masked_fill(~self.mask, 0.0))

    def sequence_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the tokens that take part, [sequences]; 0 for a sequence without any."""
        return self.sequence_sum(values) / self.lengths.clamp(min=1.0)

    def spread(self, per_sequence: torch.Tensor) -> torch.Tensor:
        """Repeats a number per sequence over its tokens, [tokens]."""
        return per_sequence[self.segment]

    def sequence_positive(self) -> torch.Tensor:
        """True where the first token of a sequence that takes part has A >= 0, [sequences]."""
        import torch

        position = torch.arange(len(self.mask), device=self.mask.device)
        first = torch.full_like(self.offsets[1:], len(self.mask))
        first = first.scatter_reduce(0, self.segment[self.mask], position[self.mask], "amin")
        padded = torch.cat([self.positive, self.positive.new_ones(1)])
        return padded[first]
