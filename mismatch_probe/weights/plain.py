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
    """No importance sampling: what a correction takes away is counted from here.

    phi = 1.

    Source: Williams 1992; verl `bypass_mode` with loss_type=reinforce and no rollout_is; ROLL pg_variant "vanilla".

    Trap: blind to any mismatch; runs without any correction are reported to collapse (Thinking Machines Lab
    2025: step 318).
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
    """Token importance sampling: each token by its own ratio.

    phi = rho_t = pi / mu.

    Source: the first-order approximation of sequence importance sampling, arXiv 2512.01374.

    Trap: unbounded, and biased for responses of more than one token; saturates at exp(690).
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
    """Sequence importance sampling: every token by the weight of its response.

    phi = W = prod pi / mu.

    Source: the unbiased estimator, VESPO arXiv 2602.10693 equation 3.

    Trap: for log W ~ N(-s/2, s) its variance is e^s - 1; unbounded, saturates at exp(690).

    Trap: verl, slime and SkyRL clamp log W to +-20 first, which biases it where W is that large.
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
    """Prefix importance sampling: each token by the weight of what led to it.

    phi_t = prod_{k <= t} pi / mu. Masked tokens count as ratio 1.

    Source: the exact weight of a causal policy gradient.

    Trap: late tokens of long responses weigh as wildly as W does; unbounded, saturates at exp(690).
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
