"""Trust regions on probabilities instead of ratios."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from mismatch_probe.weights.aggregation import Aggregation, aggregate
from mismatch_probe.weights.batch import Batch
from mismatch_probe.weights.clipped import StaleReads
from mismatch_probe.weights.decoupled import log_bound
from mismatch_probe.weights.divergences import binary_kl, probability, total_variation
from mismatch_probe.weights.hyperparameters import NOT_NEGATIVE, limits, one_of
from mismatch_probe.weights.method import GradientView
from mismatch_probe.weights.ratios import Ratios, bounded_exp
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch

_ANCHORS = one_of(
    {
        "train/rollout": "pi / mu (the paper, SkyRL, verl in bypass mode)",
        "train/old": "pi / pi_old, and pi_old in the divergence (verl otherwise)",
    }
)


@dataclass(frozen=True, slots=True)
class _Dppo(GradientView):
    cap: float | None = field(default=None, metadata=limits(optional=True, low=1.0))
    reads: StaleReads = field(default="train/rollout", metadata=_ANCHORS)

    def anchor(self, ratios: Ratios) -> torch.Tensor:
        """The policy that divergences are measured from, [tokens]."""
        return ratios.old if self.reads == "train/old" and ratios.old is not None else ratios.rollout

    def inside(self, ratios: Ratios, divergence: torch.Tensor, delta: float) -> torch.Tensor:
        """min(rho, cap), and 0 where the update goes further away and the divergence is above delta already."""
        log_ratio = ratios.log_ratio(self.reads)
        away = (log_ratio > 0).where(ratios.advantages > 0, (log_ratio < 0) & (ratios.advantages < 0))
        return bounded_exp(log_ratio.clamp(max=log_bound(self.cap))) * ~(away & (divergence > delta))


@register_method
@dataclass(frozen=True, slots=True)
class DppoTV(_Dppo):
    """DPPO-TV: the ratio, until the probability has moved too far the way that A pushes it.

    phi = min(rho, cap), and 0 where (A > 0, rho > 1 or A < 0, rho < 1) and |pi - mu| > delta; rho = pi / mu.

    Source: arXiv 2602.04879 v3 equation 13; delta 0.15 (0.2 at scale), no cap (5 in some runs).

    Trap: verl reads pi_old recomputed by the trainer unless in bypass mode, against the paper's advice.

    Trap: in verl `clip_ratio_low/high` hold delta (0.2 unless set) and `clip_ratio_c` the cap, 3.0 unless set, where
    its comment recommends a large one.
    """

    name: ClassVar[str] = "dppo_tv"
    label: ClassVar[str] = "DPPO (TV)"

    delta: float = field(default=0.15, metadata=NOT_NEGATIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The ratio inside the trust region."""
        return self.inside(ratios, total_variation(ratios.train, self.anchor(ratios)), self.delta)


@register_method
@dataclass(frozen=True, slots=True)
class DppoKL(_Dppo):
    """DPPO-KL: DPPO with the binary KL divergence of the sampled token.

    phi = min(rho, cap), and 0 where (A > 0, rho > 1 or A < 0, rho < 1) and D > delta; D = mu log(mu / pi) +
    (1 - mu) log((1 - mu) / (1 - pi)), rho = pi / mu.

    Source: arXiv 2602.04879 v3 equation 14; delta 0.05.

    Trap: verl and SkyRL use the same 0.2 for it as for the total variation, a looser mask.

    Trap: both add 1e-8 to 1 - mu and 1 - pi (`variant` "verl"), which caps D for tokens of probability near 1.
    """

    name: ClassVar[str] = "dppo_kl"
    label: ClassVar[str] = "DPPO (KL)"

    delta: float = field(default=0.05, metadata=NOT_NEGATIVE)
    variant: Literal["paper", "verl"] = field(
        default="paper",
        metadata=one_of(
            {
                "paper": "D as it is",
                "verl": "1e-8 added to 1 - mu and 1 - pi inside the logarithm (also SkyRL)",
            }
        ),
    )

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The ratio inside the trust region."""
        offset = 0.0 if self.variant == "paper" else 1e-8
        return self.inside(ratios, binary_kl(self.anchor(ratios), ratios.train, offset=offset), self.delta)


@dataclass(frozen=True, slots=True)
class _PrimeRL(GradientView):
    reads: ClassVar[str] = "train/rollout"

    kl_tau: float = field(default=1e-3, metadata=NOT_NEGATIVE)

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
class PrimeDppo(_PrimeRL):
    """prime-rl's default loss: the ratio, unless the probability has moved too far with A.

    phi = rho, and 0 where A > 0 and pi - mu > mask_high, or A <= 0 and pi - mu < -mask_low; rho = pi / mu.

    Source: PrimeIntellect-ai/prime-rl `loss.py` default_loss_fn; 0.2 / 0.2, kl_tau 1e-3.

    Trap: its documentation names a cap on rho that the code does not have.

    Trap: the loss adds kl_tau * log_ratio^2 on every token, dropped ones too; see `regulariser`, it is not in phi nor
    in `loss`.
    """

    name: ClassVar[str] = "prime_dppo"
    label: ClassVar[str] = "prime-rl DPPO"

    mask_low: float = field(default=0.2, metadata=NOT_NEGATIVE)
    mask_high: float = field(default=0.2, metadata=NOT_NEGATIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The ratio, unless the probability has moved too far the way that A pushes it."""
        shift = probability(ratios.train) - probability(ratios.rollout)
        keep = (shift <= self.mask_high).where(ratios.advantages > 0, shift >= -self.mask_low)
        return bounded_exp(ratios.log_ratio("train/rollout")) * keep


@register_method
@dataclass(frozen=True, slots=True)
class Ipo(_PrimeRL):
    """prime-rl's IPO: the ratio, unless the probability has moved too far either way.

    phi = rho 1[|pi - mu| <= threshold], rho = pi / mu.

    Source: PrimeIntellect-ai/prime-rl `loss.py` ipo_loss_fn; threshold 0.1, kl_tau 1e-3.

    Trap: unlike in DPPO a token that comes back into the region is dropped as well.

    Trap: the loss adds kl_tau * log_ratio^2 on every token; see `regulariser`, it is not in phi nor in `loss`.
    """

    name: ClassVar[str] = "ipo"
    label: ClassVar[str] = "prime-rl IPO"

    threshold: float = field(default=0.1, metadata=NOT_NEGATIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The ratio inside the band."""
        keep = total_variation(ratios.train, ratios.rollout) <= self.threshold
        return bounded_exp(ratios.log_ratio("train/rollout")) * keep
