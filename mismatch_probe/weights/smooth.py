"""Smooth gates on the token ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mismatch_probe.weights.aggregation import Aggregation
from mismatch_probe.weights.clipped import STALE_READS, StaleReads
from mismatch_probe.weights.divergences import probability
from mismatch_probe.weights.hyperparameters import OPTIONAL_BOUND, POSITIVE
from mismatch_probe.weights.method import GradientView
from mismatch_probe.weights.ratios import Ratios, bounded_exp, by_sign
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch


@register_method
@dataclass(frozen=True, slots=True)
class Sapo(GradientView):
    """SAPO: a sigmoid gate on the token ratio instead of a clip.

    phi = 4 p (1 - p) rho, p = sigmoid(tau (rho - 1)), tau by the sign of A: the gradient of (4 / tau) p. rho
    = pi / pi_old, or pi / mu without pi_old. `clamp`: nothing where |log rho| is above it.

    Source: arXiv 2511.20347 equations 5-6; tau 1.0 for A > 0, 1.05 otherwise, in seq-mean-token-mean.

    Trap: phi is not monotone: it peaks at about 1.57 near rho = 2 and vanishes on both sides.

    Trap: verl and SkyRL clamp log rho to +-20 (`clamp`; phi is below 1e-8 there); AReaL aggregates by token.
    """

    name: ClassVar[str] = "sapo"
    label: ClassVar[str] = "SAPO"
    aggregation: ClassVar[Aggregation] = "seq-mean-token-mean"
    kept_above: ClassVar[float] = 0.01

    tau_pos: float = field(default=1.0, metadata=POSITIVE)
    tau_neg: float = field(default=1.05, metadata=POSITIVE)
    clamp: float | None = field(default=None, metadata=OPTIONAL_BOUND)
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The gated ratio."""
        import torch

        log_ratio = ratios.log_ratio(self.reads)
        tau = by_sign(ratios.advantages > 0, self.tau_pos, self.tau_neg)
        gate = tau * log_ratio.clamp(max=690.0).expm1()
        sigmoid = torch.nn.functional.logsigmoid
        # log of 4 p (1 - p) rho: the factors under- and overflow where their product does not.
        gated = (math.log(4.0) + sigmoid(gate) + sigmoid(-gate) + log_ratio).exp()
        return gated if self.clamp is None else gated * (log_ratio.abs() <= self.clamp)


@register_method
@dataclass(frozen=True, slots=True)
class Drpo(GradientView):
    """DRPO: the ratio with a quadratic penalty on how far it went.

    phi = rho (1 - sgn(A) mu (rho - 1) / delta), from the loss -A rho + |A| mu (rho - 1)^2 / (2 delta). rho =
    pi / mu, so that mu (rho - 1) = pi - mu.

    Source: arXiv 2606.09821; delta 12.5 (ablation 2.5).

    Trap: for A < 0 nothing bounds rho from above.
    """

    name: ClassVar[str] = "drpo"
    label: ClassVar[str] = "DRPO"
    reads: ClassVar[str] = "train/rollout"

    delta: float = field(default=12.5, metadata=POSITIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The ratio with its quadratic penalty."""
        shift = probability(ratios.train) - probability(ratios.rollout)
        rho = bounded_exp(ratios.log_ratio("train/rollout"))
        return rho * (1.0 - ratios.advantages.sign() * shift / self.delta)
