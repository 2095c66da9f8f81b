"""Weights that are truncated and never dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from mismatch_probe.weights.clipped import STALE_READS, StaleReads, clipped_ratio
from mismatch_probe.weights.hyperparameters import FRACTION, NOT_NEGATIVE, POSITIVE, one_of
from mismatch_probe.weights.method import GradientView, Level
from mismatch_probe.weights.ratios import Ratios, bounded_exp
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch


def log_bound(value: float) -> float:
    """log(value), with -inf for 0."""
    return math.log(value) if value > 0 else -math.inf


@register_method
@dataclass(frozen=True, slots=True)
class TokenTIS(GradientView):
    """Truncated importance sampling by token: phi = PPO(pi / pi_old) * clamp(pi_old / mu, floor, cap).

    Decoupled: the clip reads the update, the weight reads the mismatch. Without pi_old the update factor is 1
    and the weight is min(pi / mu, cap). cap 2 (verl `rollout_is_threshold`, slime `--tis-clip`, SkyRL), 3
    (TRL), 8 (the DAPO-32B run of the blog that proposed it, Yao et al. 2025); floor 0 (slime
    `--tis-clip-low`). ROLL's pg_variant "tis" is cap 1.
    """

    name: ClassVar[str] = "token_tis"
    label: ClassVar[str] = "token TIS"
    reads: ClassVar[str] = "train/old * old/rollout"

    cap: float = field(default=2.0, metadata=POSITIVE)
    floor: float = field(default=0.0, metadata=NOT_NEGATIVE)
    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update times the truncated mismatch."""
        update = clipped_ratio(ratios.update(), ratios.positive, self.eps_low, self.eps_high)
        mismatch = ratios.log_ratio("old/rollout")
        return update * mismatch.clamp(log_bound(self.floor), math.log(self.cap)).exp()


@register_method
@dataclass(frozen=True, slots=True)
class SequenceTIS(GradientView):
    """Truncated importance sampling by sequence: phi = PPO(pi / pi_old) * min(W, cap), W = prod pi_old / mu.

    Without pi_old the update factor is 1 and W is of pi / mu. `scope` "mean" takes W^(1/T), as ms-swift,
    AReaL and ROLL ("geometric") do under the same name. cap 2 (verl, which advises 2 to 10), 5 (SkyRL), 8
    (VCPO, arXiv 2602.17616). verl clamps log W to +-20 first; with a cap below e^20 that changes nothing.
    """

    name: ClassVar[str] = "seq_tis"
    label: ClassVar[str] = "sequence TIS"
    level: ClassVar[Level] = "sequence"
    reads: ClassVar[str] = "train/old * old/rollout"

    cap: float = field(default=2.0, metadata=POSITIVE)
    scope: Literal["sequence", "mean"] = field(default="sequence", metadata=one_of("sequence", "mean"))
    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update times the truncated sequence weight."""
        update = clipped_ratio(ratios.update(), ratios.positive, self.eps_low, self.eps_high)
        over_tokens = ratios.sequence_sum if self.scope == "sequence" else ratios.sequence_mean
        log_w = over_tokens(ratios.log_ratio("old/rollout")).clamp(max=math.log(self.cap))
        return update * ratios.spread(log_w.exp())


@register_method
@dataclass(frozen=True, slots=True)
class Cispo(GradientView):
    """CISPO: phi = clip(rho, 1 - eps_low, 1 + eps_high), held constant, never 0 (arXiv 2506.13585).

    Reads pi / pi_old, or pi / mu without pi_old. `variant` "relative": verl and slime, 1 +- eps with 0.2 /
    0.28. "absolute": phi = min(rho, cap) without a floor (ScaleRL cap 5; TRL, whose `epsilon_high` is this
    absolute cap). Trap: the same key `epsilon_high` = 0.28 means a cap of 1.28 in verl and of 0.28 in TRL.
    """

    name: ClassVar[str] = "cispo"
    label: ClassVar[str] = "CISPO"

    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.28, metadata=NOT_NEGATIVE)
    cap: float = field(default=5.0, metadata=POSITIVE)
    variant: Literal["relative", "absolute"] = field(
        default="relative", metadata=one_of("relative", "absolute")
    )
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped ratio."""
        log_ratio = ratios.log_ratio(self.reads)
        if self.variant == "absolute":
            return bounded_exp(log_ratio.clamp(max=math.log(self.cap)))
        return bounded_exp(log_ratio).clamp(1.0 - self.eps_low, 1.0 + self.eps_high)


@register_method
@dataclass(frozen=True, slots=True)
class Topr(GradientView):
    """TOPR: phi = 1 for A > 0, min(W, 1) otherwise, W = prod pi / mu (arXiv 2503.14286 equation 8).

    `scope` "token" clamps each token's own ratio instead (ROLL); "mean" takes s = W^(1/T) (the comparison in
    the VESPO paper). The paper splits by the sign of the reward; with a baseline that is the sign of A.
    """

    name: ClassVar[str] = "topr"
    label: ClassVar[str] = "TOPR"
    level: ClassVar[Level] = "sequence"
    reads: ClassVar[str] = "train/rollout"

    scope: Literal["sequence", "token", "mean"] = field(
        default="sequence", metadata=one_of("sequence", "token", "mean")
    )

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """1, or the weight truncated at 1."""
        log_ratio = ratios.log_ratio("train/rollout")
        if self.scope == "sequence":
            log_ratio = ratios.spread(ratios.sequence_sum(log_ratio))
        elif self.scope == "mean":
            log_ratio = ratios.spread(ratios.sequence_mean(log_ratio))
        return log_ratio.clamp(max=0.0).masked_fill(ratios.advantages > 0, 0.0).exp()


@register_method
@dataclass(frozen=True, slots=True)
class MiniRL(GradientView):
    """MiniRL: phi = M(pi / pi_old) * min(pi / mu, cap), M the PPO mask.

    arXiv 2512.01374 equation 7: 0.2 / 0.27, cap 5. Without pi_old the mask passes all.
    """

    name: ClassVar[str] = "minirl"
    label: ClassVar[str] = "MiniRL"
    reads: ClassVar[str] = "train/old * train/rollout"

    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.27, metadata=NOT_NEGATIVE)
    cap: float = field(default=5.0, metadata=POSITIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The truncated ratio, where the update's clip lets it through."""
        passes = clipped_ratio(ratios.update(), ratios.positive, self.eps_low, self.eps_high) > 0
        return ratios.log_ratio("train/rollout").clamp(max=math.log(self.cap)).exp() * passes
