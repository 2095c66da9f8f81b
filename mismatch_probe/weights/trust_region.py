"""Trust regions on probabilities instead of ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mismatch_probe.weights.aggregation import Aggregation, aggregate
from mismatch_probe.weights.batch import Batch
from mismatch_probe.weights.clipped import clipped_ratio
from mismatch_probe.weights.divergences import binary_kl, probability, total_variation
from mismatch_probe.weights.hyperparameters import FRACTION, NOT_NEGATIVE, limits
from mismatch_probe.weights.method import GradientView
from mismatch_probe.weights.ratios import Ratios, bounded_exp
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch


def _dppo(ratios: Ratios, divergence: torch.Tensor, delta: float, cap: float | None) -> torch.Tensor:
    """min(rho, cap), and 0 where the update goes further away and the divergence is above delta already."""
    log_ratio = ratios.log_ratio("train/rollout")
    away = (log_ratio > 0).where(ratios.advantages > 0, (log_ratio < 0) & (ratios.advantages < 0))
    rho = bounded_exp(log_ratio if cap is None else log_ratio.clamp(max=math.log(cap)))
    return rho * ~(away & (divergence > delta))


@register_method
@dataclass(frozen=True, slots=True)
class DppoTV(GradientView):
    """DPPO-TV: phi = min(rho, cap), 0 where (A > 0, rho > 1 or A < 0, rho < 1) and |pi - mu| > delta.

    arXiv 2602.04879 v3; delta 0.15 (0.2 at scale), no cap (5 in some runs). Anchored on the rollout's mu, not
    on a recomputed pi_old. In verl (`dppo_tv`) the keys `clip_ratio_low/high` hold delta and `clip_ratio_c`,
    3.0 unless set, the cap.
    """

    name: ClassVar[str] = "dppo_tv"
    label: ClassVar[str] = "DPPO (TV)"
    reads: ClassVar[str] = "train/rollout"

    delta: float = field(default=0.15, metadata=NOT_NEGATIVE)
    cap: float | None = field(default=None, metadata=limits(optional=True, low=1.0))

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The ratio inside the trust region."""
        return _dppo(ratios, total_variation(ratios.train, ratios.rollout), self.delta, self.cap)


@register_method
@dataclass(frozen=True, slots=True)
class DppoKL(GradientView):
    """DPPO-KL: as DPPO-TV with D = mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi)) and delta 0.05."""

    name: ClassVar[str] = "dppo_kl"
    label: ClassVar[str] = "DPPO (KL)"
    reads: ClassVar[str] = "train/rollout"

    delta: float = field(default=0.05, metadata=NOT_NEGATIVE)
    cap: float | None = field(default=None, metadata=limits(optional=True, low=1.0))

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The ratio inside the trust region."""
        return _dppo(ratios, binary_kl(ratios.rollout, ratios.train), self.delta, self.cap)


@register_method
@dataclass(frozen=True, slots=True)
class KPop(GradientView):
    """KPop: phi = PPO(pi / pi_old), 0 where either binary KL of pi_old and mu is above a bound.

    Ling / Ring 2.6 report, section 3.2.3; bound 2.0 nats (AReaL's example, a loose mask; its own
    configuration class refuses the metric). Without pi_old the update factor is 1 and pi stands for pi_old.
    """

    name: ClassVar[str] = "kpop"
    label: ClassVar[str] = "KPop"
    reads: ClassVar[str] = "train/old * old/rollout"

    bound: float = field(default=2.0, metadata=NOT_NEGATIVE)
    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update inside the trust region."""
        old = ratios.train if ratios.old is None else ratios.old
        keep = (binary_kl(old, ratios.rollout) <= self.bound) & (binary_kl(ratios.rollout, old) <= self.bound)
        return clipped_ratio(ratios.update(), ratios.positive, self.eps_low, self.eps_high) * keep


@register_method
@dataclass(frozen=True, slots=True)
class PrimeDppo(GradientView):
    """prime-rl's default loss: phi = rho, 0 where the probability has moved too far with A.

    Dropped: A > 0 and pi - mu > mask_high, or A <= 0 and pi - mu < -mask_low.

    PrimeIntellect-ai/prime-rl `loss.py`; 0.2 / 0.2, rho = pi / mu without a cap (its docs name one that the
    code does not have). A regulariser kl_tau * log_ratio^2 (1e-3) comes on top, see `regulariser`; it is not
    in phi nor in `loss`.
    """

    name: ClassVar[str] = "prime_dppo"
    label: ClassVar[str] = "prime-rl DPPO"
    reads: ClassVar[str] = "train/rollout"

    mask_low: float = field(default=0.2, metadata=NOT_NEGATIVE)
    mask_high: float = field(default=0.2, metadata=NOT_NEGATIVE)
    kl_tau: float = field(default=1e-3, metadata=NOT_NEGATIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The ratio, unless the probability has moved too far the way that A pushes it."""
        shift = probability(ratios.train) - probability(ratios.rollout)
        keep = (shift <= self.mask_high).where(ratios.advantages > 0, shift >= -self.mask_low)
        return bounded_exp(ratios.log_ratio("train/rollout")) * keep

    def regulariser(self, batch: Batch, aggregation: Aggregation | None = None) -> torch.Tensor:
        """kl_tau * log_ratio^2, aggregated and differentiable: `loss` plus this is prime-rl's loss."""
        import torch

        dtype = torch.promote_types(batch.train_logprobs.dtype, torch.float32)
        drift = (batch.train_logprobs.to(dtype) - batch.rollout_logprobs.to(dtype)).masked_fill(
            ~batch.mask, 0.0
        )
        return aggregate(self.kl_tau * drift.square(), batch.ratios(), aggregation or self.aggregation)


@register_method
@dataclass(frozen=True, slots=True)
class Ipo(GradientView):
    """prime-rl's ipo: phi = rho 1[|pi - mu| <= threshold], rho = pi / mu; threshold 0.1."""

    name: ClassVar[str] = "ipo"
    label: ClassVar[str] = "prime-rl IPO"
    reads: ClassVar[str] = "train/rollout"

    threshold: float = field(default=0.1, metadata=NOT_NEGATIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The ratio inside the band."""
        keep = total_variation(ratios.train, ratios.rollout) <= self.threshold
        return bounded_exp(ratios.log_ratio("train/rollout")) * keep
