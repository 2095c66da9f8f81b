"""The clipped ratio of PPO and its relatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from mismatch_probe.weights.hyperparameters import (
    ABOVE_ONE,
    FRACTION,
    NOT_NEGATIVE,
    OPTIONAL_BOUND,
    one_of,
)
from mismatch_probe.weights.method import GradientView
from mismatch_probe.weights.ratios import Ratios, bounded_exp
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch

StaleReads = Literal["train/old", "train/rollout"]
STALE_READS = one_of(
    {
        "train/old": "pi / pi_old, which the mismatch is not in; pi / mu without pi_old",
        "train/rollout": "pi / mu, even where there is a pi_old",
    }
)


def clip_passes(
    log_ratio: torch.Tensor,
    positive: torch.Tensor,
    eps_low: float,
    eps_high: float,
    *,
    ceiling: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """Where PPO's clip lets the gradient through, bool [tokens]. Bounds pass.

    A >= 0 passes rho <= 1 + eps_high; A < 0 passes rho >= 1 - eps_low, up to the ceiling if there is one.

    Args:
        log_ratio: log rho in nats, [tokens].
        positive: True where A >= 0, [tokens].
        eps_low: Distance of the floor from 1.
        eps_high: Distance of the cap from 1.
        ceiling: Largest rho that passes with A < 0; None has none.
        clamp: Nothing passes where |log rho| is larger: code that clamps log rho first has no gradient there.
    """
    rho = bounded_exp(log_ratio)
    passes = (rho <= 1.0 + eps_high).where(positive, rho >= 1.0 - eps_low)
    if ceiling is not None:
        passes = passes & (positive | (rho <= ceiling))
    return passes if clamp is None else passes & (log_ratio.abs() <= clamp)


def clipped_ratio(
    log_ratio: torch.Tensor,
    positive: torch.Tensor,
    eps_low: float,
    eps_high: float,
    *,
    ceiling: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """Rho where PPO's clip lets the gradient through, 0 elsewhere; arguments as of `clip_passes`."""
    passes = clip_passes(log_ratio, positive, eps_low, eps_high, ceiling=ceiling, clamp=clamp)
    return bounded_exp(log_ratio) * passes


@register_method
@dataclass(frozen=True, slots=True)
class PPOClip(GradientView):
    """PPO / GRPO clip: the ratio, and nothing where it has already moved far enough.

    phi = rho if A >= 0 and rho <= 1 + eps_high, or A < 0 and rho >= 1 - eps_low; else 0. rho = pi / pi_old,
    or pi / mu without pi_old (bypass mode). `clamp`: nothing passes where |log rho| is above it.

    Source: arXiv 1707.06347; GRPO, arXiv 2402.03300; 0.2 / 0.2.

    Trap: with pi_old recomputed by the trainer the mismatch is not in rho: this clip does not see it.

    Trap: for A < 0 nothing bounds rho from above; verl's `vanilla` is therefore always a dual clip with c = 3.

    Trap: verl, SkyRL and OpenRLHF clamp log rho to +-20 first and have no gradient beyond (`clamp`).
    """

    name: ClassVar[str] = "ppo_clip"
    label: ClassVar[str] = "PPO / GRPO clip"

    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)
    clamp: float | None = field(default=None, metadata=OPTIONAL_BOUND)
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped ratio."""
        return clipped_ratio(
            ratios.log_ratio(self.reads),
            ratios.positive,
            self.eps_low,
            self.eps_high,
            ceiling=self._ceiling(),
            clamp=self.clamp,
        )

    def _ceiling(self) -> float | None:
        return None


@register_method
@dataclass(frozen=True, slots=True)
class Dapo(PPOClip):
    """DAPO clip-higher: the PPO clip with more room upwards.

    phi = rho if A >= 0 and rho <= 1 + eps_high, or A < 0 and rho >= 1 - eps_low; else 0. rho = pi / pi_old,
    or pi / mu without pi_old.

    Source: arXiv 2503.14476; 0.2 / 0.28.

    Trap: TRL's `loss_type="dapo"` names the aggregation; its clip is 0.2 / 0.2 until epsilon_high is set.
    """

    name: ClassVar[str] = "dapo"
    label: ClassVar[str] = "DAPO clip-higher"

    eps_high: float = field(default=0.28, metadata=NOT_NEGATIVE)


@register_method
@dataclass(frozen=True, slots=True)
class DualClip(PPOClip):
    """Dual clip: the PPO clip, bounded from above for A < 0 as well.

    phi = rho if A >= 0 and rho <= 1 + eps_high, or A < 0 and 1 - eps_low <= rho <= c; else 0. rho = pi /
    pi_old, or pi / mu without pi_old.

    Source: arXiv 1912.09729; c = 3 is verl's `clip_ratio_c` (large MoE scripts use 10) and SkyRL's.

    Trap: frameworks bound the loss before or after they look at the sign of A: the same gradient either way.

    Trap: ROLL's c is 1 + 2 pg_clip, that is 1.4; off unless set in slime, miles, NeMo-RL, OpenRLHF and AReaL.
    """

    name: ClassVar[str] = "dual_clip"
    label: ClassVar[str] = "dual clip"

    c: float = field(default=3.0, metadata=ABOVE_ONE)

    def _ceiling(self) -> float | None:
        return self.c


@register_method
@dataclass(frozen=True, slots=True)
class TwoSided(PPOClip):
    """Two-sided clip: the PPO clip, and nothing where A < 0 and the ratio is above delta.

    phi = rho if A >= 0 and rho <= 1 + eps_high, or A < 0 and 1 - eps_low <= rho <= delta; else 0. rho = pi /
    pi_old, or pi / mu without pi_old.

    Source: INTELLECT-2, arXiv 2505.07291; TRL and ms-swift `delta`; 0.2 / 0.28, delta 4.

    Trap: the gradient of the dual clip with c = delta; the losses differ by a constant, so their curves do too. In
    TRL delta must lie above 1 + epsilon_high, and is off unless set.
    """

    name: ClassVar[str] = "two_sided"
    label: ClassVar[str] = "two-sided clip"

    eps_high: float = field(default=0.28, metadata=NOT_NEGATIVE)
    delta: float = field(default=4.0, metadata=ABOVE_ONE)

    def _ceiling(self) -> float | None:
        return self.delta
