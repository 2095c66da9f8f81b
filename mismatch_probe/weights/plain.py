"""No correction, and plain importance sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mismatch_probe.weights.method import GradientView, Level
from mismatch_probe.weights.ratios import Ratios, bounded_exp
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch


@register_method
@dataclass(frozen=True, slots=True)
class Reinforce(GradientView):
    """No importance sampling: phi = 1.

    Reads no ratio, so it is blind to any mismatch; the reference for what a correction takes away. Runs
    without any correction are reported to collapse (Thinking Machines Lab, 2025: step 318).
    """

    name: ClassVar[str] = "reinforce"
    label: ClassVar[str] = "REINFORCE"
    reads: ClassVar[str] = "none"

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """1."""
        import torch

        return torch.ones_like(ratios.train)


@register_method
@dataclass(frozen=True, slots=True)
class TokenIS(GradientView):
    """Token importance sampling: phi = rho_t = pi / mu.

    The first-order approximation of sequence importance sampling (arXiv 2512.01374). Unbounded: saturates at
    exp(690).
    """

    name: ClassVar[str] = "token_is"
    label: ClassVar[str] = "token IS"
    reads: ClassVar[str] = "train/rollout"

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """Rho."""
        return bounded_exp(ratios.log_ratio("train/rollout"))


@register_method
@dataclass(frozen=True, slots=True)
class SequenceIS(GradientView):
    """Sequence importance sampling: phi = W = prod rho_t.

    Unbiased; for log W ~ N(-s/2, s) its variance is e^s - 1. Unbounded: saturates at exp(690). Trainers log
    it with log W clamped to +-20 (verl), which this does not do.
    """

    name: ClassVar[str] = "seq_is"
    label: ClassVar[str] = "sequence IS"
    level: ClassVar[Level] = "sequence"
    reads: ClassVar[str] = "train/rollout"

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """W."""
        return ratios.spread(bounded_exp(ratios.sequence_sum(ratios.log_ratio("train/rollout"))))


@register_method
@dataclass(frozen=True, slots=True)
class PrefixIS(GradientView):
    """Prefix importance sampling: phi_t = prod_{k<=t} rho_k.

    The exact weight of a causal policy gradient. Masked tokens count as ratio 1. Unbounded: saturates at
    exp(690).
    """

    name: ClassVar[str] = "prefix_is"
    label: ClassVar[str] = "prefix IS"
    reads: ClassVar[str] = "train/rollout"

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The running product."""
        import torch

        # Each sequence on its own: one sum over the whole batch would lose digits to what came before.
        pieces = torch.split(ratios.log_ratio("train/rollout"), ratios.offsets.diff().tolist())
        return bounded_exp(torch.cat([piece.cumsum(0) for piece in pieces]))
