"""Weights that are truncated rather than dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from mismatch_probe.weights.clipped import STALE_READS, StaleReads, clip_passes
from mismatch_probe.weights.decoupled import (
    NORMALISE,
    Decoupled,
    Normalise,
    log_bound,
    not_vetoed,
    over_mean,
    within,
)
from mismatch_probe.weights.hyperparameters import FRACTION, NOT_NEGATIVE, OPTIONAL_BOUND, POSITIVE, one_of
from mismatch_probe.weights.method import GradientView, Level
from mismatch_probe.weights.ratios import Ratios, bounded_exp
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch


@register_method
@dataclass(frozen=True, slots=True)
class TokenTIS(Decoupled):
    """Truncated importance sampling by token: the update is clipped, the mismatch is truncated.

    phi = PPO(pi / pi_old) * clamp(k, floor, cap), k = pi_old / mu. Without pi_old the update factor is 1 and
    k = pi / mu. `cap` None leaves k as it is. `keep_low`, `keep_high` drop tokens whose k lies outside,
    `veto`, `veto_high` whole responses with such a token, and `normalise` divides the truncated weights by
    their mean first: together slime's mis.yaml.

    Source: Yao et al. 2025 (cap 8 in its DAPO-32B run); cap 2 in verl `rollout_is_threshold`, slime
    `--tis-clip` and SkyRL, 3 in TRL, 5 in AReaL (action=clamp), 1.2 in ROLL; floor 0, 0.5 in OpenRLHF.

    Trap: NeMo-RL truncates nothing until truncated_importance_sampling_ratio is set (`cap` None).

    Trap: ROLL's pg_variant "tis" is another thing: clamp(pi / pi_old, 0, 1), here `cispo` with eps_low 1, eps_high 0.
    """

    name: ClassVar[str] = "token_tis"
    label: ClassVar[str] = "token TIS"

    cap: float | None = field(default=2.0, metadata=OPTIONAL_BOUND)
    floor: float = field(default=0.0, metadata=NOT_NEGATIVE)
    keep_low: float | None = field(default=None, metadata=OPTIONAL_BOUND)
    keep_high: float | None = field(default=None, metadata=OPTIONAL_BOUND)
    veto: float = field(default=0.0, metadata=FRACTION)
    veto_high: float | None = field(default=None, metadata=OPTIONAL_BOUND)
    normalise: Normalise = field(default="none", metadata=NORMALISE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update times the truncated mismatch."""
        mismatch = ratios.log_ratio(self.mismatch)
        weight = bounded_exp(mismatch.clamp(log_bound(self.floor), log_bound(self.cap)))
        if self.normalise == "mean":
            weight = over_mean(weight, ratios.mask)
        keep = ratios.spread(not_vetoed(ratios, mismatch, self.veto, self.veto_high))
        return self.update(ratios) * weight * (keep & within(mismatch, self.keep_low, self.keep_high))


@register_method
@dataclass(frozen=True, slots=True)
class SequenceTIS(Decoupled):
    """Truncated importance sampling by sequence: the update is clipped, the mismatch of the whole is truncated.

    phi = PPO(pi / pi_old) * min(W, cap), W = prod pi_old / mu. Without pi_old the update factor is 1 and W is
    of pi / mu. `scope` "mean" takes W^(1/T), "truncated_geometric" and "truncated_arithmetic" the mean over the response
    of min(pi_old / mu, cap). `cap` None leaves W as it is.

    Source: verl `decoupled_seq_is` (cap 2, which advises 2 to 10), SkyRL 5, TRL 3, ROLL 1.2, VCPO 8 (arXiv
    2602.17616).

    Trap: the same name is W^(1/T) in ms-swift, AReaL and ROLL's "geometric": nearly always 1, so hardly a correction.

    Trap: verl and SkyRL clamp log W to +-20 first; with a cap below e^20 that changes nothing.
    """

    name: ClassVar[str] = "seq_tis"
    label: ClassVar[str] = "sequence TIS"
    level: ClassVar[Level] = "sequence"

    cap: float | None = field(default=2.0, metadata=OPTIONAL_BOUND)
    scope: Literal["sequence", "mean", "truncated_geometric", "truncated_arithmetic"] = field(
        default="sequence",
        metadata=one_of(
            {
                "sequence": "W, the product (verl, TRL, SkyRL, NeMo-RL, ROLL sequence)",
                "mean": "W^(1/T), the geometric mean (ms-swift, AReaL, ROLL geometric)",
                "truncated_geometric": "geometric mean of truncated token ratios (token weights on verl's geo_mean)",
                "truncated_arithmetic": "their mean (token weights on GSPO in TRL, AReaL and ms-swift)",
            }
        ),
    )
    normalise: Normalise = field(default="none", metadata=NORMALISE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update times the truncated sequence weight."""
        mismatch, bound = ratios.log_ratio(self.mismatch), log_bound(self.cap)
        if self.scope == "truncated_arithmetic":
            # A loss that differentiates through the mean of a response hands every token the mean of the weights.
            weight = ratios.sequence_mean(bounded_exp(mismatch.clamp(max=bound)))
        elif self.scope == "truncated_geometric":
            weight = bounded_exp(ratios.sequence_mean(mismatch.clamp(max=bound)))
        else:
            over_tokens = ratios.sequence_sum if self.scope == "sequence" else ratios.sequence_mean
            weight = bounded_exp(over_tokens(mismatch).clamp(max=bound))
        if self.normalise == "mean":
            weight = over_mean(weight, ratios.lengths > 0)
        return self.update(ratios) * ratios.spread(weight)


@register_method
@dataclass(frozen=True, slots=True)
class Cispo(GradientView):
    """CISPO: the clipped ratio held constant, so that no token is without a gradient.

    phi = clip(rho, 1 - eps_low, 1 + eps_high), or min(rho, cap) with `variant` "absolute". rho = pi / pi_old,
    or pi / mu without pi_old.

    Source: arXiv 2506.13585, which has no lower bound in effect; 0.2 / 0.28 in verl scripts; ScaleRL (arXiv
    2510.13786) cap 5; SkyRL, AReaL [0, 5]; tinker [0, 4]; ROLL 0.1 / 0.1.

    Trap: epsilon_high = 0.28 is a cap of 1.28 in verl, slime, NeMo-RL, ROLL and AReaL, and of 0.28 in TRL and ms-swift.

    Trap: with eps_low below 1 tokens that the policy moved away from keep a weight of 1 - eps_low (slime warns of it).
    """

    name: ClassVar[str] = "cispo"
    label: ClassVar[str] = "CISPO"

    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.28, metadata=NOT_NEGATIVE)
    cap: float = field(default=5.0, metadata=POSITIVE)
    variant: Literal["relative", "absolute", "unified_mask"] = field(
        default="relative",
        metadata=one_of(
            {
                "relative": "1 +- eps (verl, slime, SkyRL, NeMo-RL, AReaL, ROLL)",
                "absolute": "min(rho, cap), no floor (TRL and ms-swift, whose epsilon_high is the cap; ScaleRL)",
                "unified_mask": "1 +- eps, and 0 where PPO's clip has no gradient (ROLL cispo_use_unified_mask)",
            }
        ),
    )
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped ratio."""
        log_ratio = ratios.log_ratio(self.reads)
        if self.variant == "absolute":
            return bounded_exp(log_ratio.clamp(max=math.log(self.cap)))
        clipped = bounded_exp(log_ratio).clamp(1.0 - self.eps_low, 1.0 + self.eps_high)
        if self.variant == "relative":
            return clipped
        return clipped * clip_passes(log_ratio, ratios.positive, self.eps_low, self.eps_high)


@register_method
@dataclass(frozen=True, slots=True)
class Topr(GradientView):
    """TOPR: positive responses as they are, negative ones weighted by their ratio, at most 1.

    phi = 1 for A > 0, min(W, 1) otherwise, W = prod pi / mu. `scope` "token" clamps each token's own ratio,
    "mean" takes W^(1/T).

    Source: arXiv 2503.14286 equation 8.

    Trap: the paper and ROLL split by the sign of the reward, not of A; with a baseline the two differ.

    Trap: ROLL reads pi / pi_old by token, and so does not see the mismatch.
    """

    name: ClassVar[str] = "topr"
    label: ClassVar[str] = "TOPR"
    level: ClassVar[Level] = "sequence"

    scope: Literal["sequence", "token", "mean"] = field(
        default="sequence",
        metadata=one_of(
            {
                "sequence": "W (the paper)",
                "token": "each token's own ratio (ROLL)",
                "mean": "W^(1/T) (the comparison in the VESPO paper)",
            }
        ),
    )
    reads: StaleReads = field(default="train/rollout", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """1, or the weight truncated at 1."""
        log_ratio = ratios.log_ratio(self.reads)
        if self.scope == "sequence":
            log_ratio = ratios.spread(ratios.sequence_sum(log_ratio))
        elif self.scope == "mean":
            log_ratio = ratios.spread(ratios.sequence_mean(log_ratio))
        return log_ratio.clamp(max=0.0).masked_fill(ratios.advantages > 0, 0.0).exp()


@register_method
@dataclass(frozen=True, slots=True)
class MiniRL(GradientView):
    """MiniRL: PPO's mask on the update, a truncated weight on everything.

    phi = M(pi / pi_old) * min(pi / mu, cap), M = 1 where PPO's clip has a gradient. Without pi_old M is 1.

    Source: arXiv 2512.01374 equation 7; 0.2 / 0.27, cap 5.

    Trap: the truncated weight is of pi / mu: staleness and mismatch at once, unlike the decoupled methods.
    """

    name: ClassVar[str] = "minirl"
    label: ClassVar[str] = "MiniRL"
    reads: ClassVar[str] = "train/old * train/rollout"

    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.27, metadata=NOT_NEGATIVE)
    cap: float = field(default=5.0, metadata=POSITIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The truncated ratio, where the update's clip lets it through."""
        passes = clip_passes(ratios.update(), ratios.positive, self.eps_low, self.eps_high)
        return ratios.log_ratio("train/rollout").clamp(max=math.log(self.cap)).exp() * passes
