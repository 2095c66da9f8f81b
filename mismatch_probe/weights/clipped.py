"""The clipped ratio of PPO and its relatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from mismatch_probe.weights.hyperparameters import ABOVE_ONE, FRACTION, NOT_NEGATIVE, one_of
from mismatch_probe.weights.method import GradientView
from mismatch_probe.weights.ratios import Ratios, bounded_exp
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch

StaleReads = Literal["train/old", "train/rollout"]
STALE_READS = one_of("train/old", "train/rollout")


def clipped_ratio(
    log_ratio: torch.Tensor, positive: torch.Tensor, eps_low: float, eps_high: float
) -> torch.Tensor:
    """Rho where PPO's clip lets the gradient through, 0 elsewhere.

    A >= 0 passes rho <= 1 + eps_high; A < 0 passes rho >= 1 - eps_low, however large. Bounds pass.

    Args:
        log_ratio: log rho in nats, [tokens].
        positive: True where A >= 0, [tokens].
        eps_low: Distance of the floor from 1.
        eps_high: Distance of the cap from 1.
    """
    rho = bounded_exp(log_ratio)
    passes = (rho <= 1.0 + eps_high).where(positive, rho >= 1.0 - eps_low)
    return rho * passes


@register_method
@dataclass(frozen=True, slots=True)
class PPOClip(GradientView):
    """PPO / GRPO clip: phi = rho if A >= 0 and rho <= 1 + eps_high, or A < 0 and rho >= 1 - eps_low; else 0.

    rho is pi / pi_old; without pi_old (bypass mode) pi / mu. With pi_old recomputed by the trainer the
    mismatch is not in rho: this clip does not see it (arXiv 1707.06347; GRPO arXiv 2402.03300; defaults 0.2 /
    0.2).

    Trap: for A < 0 nothing bounds rho from above. verl clamps log rho to +-20 first, where the gradient is 0
    beyond.
    """

    name: ClassVar[str] = "ppo_clip"
    label: ClassVar[str] = "PPO / GRPO clip"

    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped ratio."""
        return clipped_ratio(ratios.log_ratio(self.reads), ratios.positive, self.eps_low, self.eps_high)


@register_method
@dataclass(frozen=True, slots=True)
class Dapo(GradientView):
    """DAPO clip-higher: the PPO clip with eps_low 0.2 and eps_high 0.28 (arXiv 2503.14476).

    Reads pi / pi_old, or pi / mu without pi_old.
    """

    name: ClassVar[str] = "dapo"
    label: ClassVar[str] = "DAPO clip-higher"

    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.28, metadata=NOT_NEGATIVE)
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped ratio."""
        return clipped_ratio(ratios.log_ratio(self.reads), ratios.positive, self.eps_low, self.eps_high)


@register_method
@dataclass(frozen=True, slots=True)
class DualClip(GradientView):
    """Dual clip: the PPO clip, and 0 where A < 0 and rho > c.

    Reads pi / pi_old, or pi / mu without pi_old. c = 3 is verl's `clip_ratio_c`; large MoE scripts use 10.
    """

    name: ClassVar[str] = "dual_clip"
    label: ClassVar[str] = "dual clip"

    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)
    c: float = field(default=3.0, metadata=ABOVE_ONE)
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped ratio, bounded for A < 0 as well."""
        log_ratio = ratios.log_ratio(self.reads)
        clipped = clipped_ratio(log_ratio, ratios.positive, self.eps_low, self.eps_high)
        return clipped * (ratios.positive | (clipped <= self.c))


@register_method
@dataclass(frozen=True, slots=True)
class TwoSided(GradientView):
    """Two-sided clip: the PPO clip, and 0 where A < 0 and rho > delta (INTELLECT-2; TRL `delta`).

    Reads pi / pi_old, or pi / mu without pi_old. The same gradient as the dual clip with c = delta; the
    losses differ by a constant. Defaults eps 0.2 / 0.28, delta 4. In TRL delta must lie above 1 + eps_high.
    """

    name: ClassVar[str] = "two_sided"
    label: ClassVar[str] = "two-sided clip"

    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.28, metadata=NOT_NEGATIVE)
    delta: float = field(default=4.0, metadata=ABOVE_ONE)
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped ratio, bounded for A < 0 as well."""
        log_ratio = ratios.log_ratio(self.reads)
        clipped = clipped_ratio(log_ratio, ratios.positive, self.eps_low, self.eps_high)
        return clipped * (ratios.positive | (clipped <= self.delta))
