"""Smooth gates on the token ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mismatch_probe.weights.aggregation import Aggregation
from mismatch_probe.weights.clipped import STALE_READS, StaleReads
from mismatch_probe.weights.divergences import probability
from mismatch_probe.weights.hyperparameters import POSITIVE
from mismatch_probe.weights.method import GradientView
from mismatch_probe.weights.ratios import Ratios, bounded_exp, by_sign
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch


@register_method
@dataclass(frozen=True, slots=True)
class Sapo(GradientView):
    """SAPO: phi = 4 p (1 - p) rho, p = sigmoid(tau (rho - 1)).

    The gradient of (4 / tau) sigmoid(tau (rho - 1)); arXiv 2511.20347 equations 5-6; tau 1.0 for A >= 0 and
    1.05 for A <= 0. phi peaks at about 1.57 near rho = 2. Reads pi / pi_old, or pi / mu without pi_old.
    """

    name: ClassVar[str] = "sapo"
    label: ClassVar[str] = "SAPO"
    aggregation: ClassVar[Aggregation] = "seq-mean-token-mean"
    kept_above: ClassVar[float] = 0.01

    tau_pos: float = field(default=1.0, metadata=POSITIVE)
    tau_neg: float = field(default=1.05, metadata=POSITIVE)
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The gated ratio."""
        import torch

        log_ratio = ratios.log_ratio(self.reads)
        tau = by_sign(ratios.advantages > 0, self.tau_pos, self.tau_neg)
        gate = tau * log_ratio.clamp(max=690.0).expm1()
        sigmoid = torch.nn.functional.logsigmoid
        # log of 4 p (1 - p) rho: the factors under- and overflow where their product does not.
        return (math.log(4.0) + sigmoid(gate) + sigmoid(-gate) + log_ratio).exp()


@register_method
@dataclass(frozen=True, slots=True)
class Drpo(GradientView):
    """DRPO: phi = rho (1 - sgn(A) mu (rho - 1) / delta).

    From the loss -A rho + |A| mu (rho - 1)^2 / (2 delta).

    arXiv 2606.09821; delta 12.5 (ablation 2.5). Anchored on the rollout's mu: rho = pi / mu, and mu (rho - 1)
    = pi - mu.
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
