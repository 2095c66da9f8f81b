"""Methods that drop tokens or whole sequences by the size of their mismatch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from mismatch_probe.weights.clipped import clipped_ratio
from mismatch_probe.weights.hyperparameters import FRACTION, NOT_NEGATIVE, POSITIVE, limits, one_of
from mismatch_probe.weights.method import GradientView, Level
from mismatch_probe.weights.ratios import Ratios, bounded_exp
from mismatch_probe.weights.registry import register_method
from mismatch_probe.weights.truncated import log_bound

if TYPE_CHECKING:
    import torch

_READS = "train/old * old/rollout"


def _not_vetoed(ratios: Ratios, log_ratio: torch.Tensor, veto: float) -> torch.Tensor:
    """False for each sequence with a token whose ratio lies below `veto`, bool [sequences]."""
    import torch

    if veto == 0.0:
        return torch.ones_like(ratios.lengths, dtype=torch.bool)
    return ratios.sequence_sum((log_ratio < math.log(veto)).to(torch.float64)) == 0


@register_method
@dataclass(frozen=True, slots=True)
class IcePop(GradientView):
    """IcePop / MIS: phi = PPO(pi / pi_old) * k 1[low <= k <= high], k = pi_old / mu by token.

    Without pi_old the update factor is 1 and k = pi / mu. [0.5, 5] (arXiv 2510.18855; OpenRLHF; verl
    `decoupled_token_icepop`, written `rollout_is_threshold="0.5_5.0"`); slime and SkyRL [0.5, 2].

    `variant` "verl_token_k1" is verl's `rollout_rs=token_k1` with the same two numbers: its statistic is -log
    k, so the bounds act on mu / pi_old and what it keeps is k in [1 / high, 1 / low]; a mask only, without
    the weight k.
    """

    name: ClassVar[str] = "icepop"
    label: ClassVar[str] = "IcePop / MIS"
    reads: ClassVar[str] = _READS

    low: float = field(default=0.5, metadata=NOT_NEGATIVE)
    high: float = field(default=5.0, metadata=POSITIVE)
    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)
    variant: Literal["paper", "verl_token_k1"] = field(
        default="paper", metadata=one_of("paper", "verl_token_k1")
    )

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update, times the ratio or nothing."""
        update = clipped_ratio(ratios.update(), ratios.positive, self.eps_low, self.eps_high)
        mismatch = ratios.log_ratio("old/rollout")
        if self.variant == "verl_token_k1":
            return update * ((-mismatch >= log_bound(self.low)) & (-mismatch <= math.log(self.high)))
        keep = (mismatch >= log_bound(self.low)) & (mismatch <= math.log(self.high))
        return update * bounded_exp(mismatch.masked_fill(~keep, 0.0)) * keep


@register_method
@dataclass(frozen=True, slots=True)
class SequenceMIS(GradientView):
    """Masked importance sampling by sequence: phi = PPO(pi / pi_old) * W 1[low <= W <= high].

    W = prod pi_old / mu.

    [0.5, 2] is verl's `decoupled_seq_is_rs`. TRL's `sequence_mask` (its default mode) is low 0 and high 3.
    `weighting` "none" masks without the weight W (SkyRL's product mask). `veto` drops a sequence with any
    ratio below it (slime 1e-4; 0 is off). Without pi_old W is of pi / mu.
    """

    name: ClassVar[str] = "seq_mis"
    label: ClassVar[str] = "sequence MIS"
    level: ClassVar[Level] = "sequence"
    reads: ClassVar[str] = _READS

    low: float = field(default=0.5, metadata=NOT_NEGATIVE)
    high: float = field(default=2.0, metadata=POSITIVE)
    weighting: Literal["sequence", "none"] = field(default="sequence", metadata=one_of("sequence", "none"))
    veto: float = field(default=0.0, metadata=FRACTION)
    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update, times the sequence weight or nothing."""
        update = clipped_ratio(ratios.update(), ratios.positive, self.eps_low, self.eps_high)
        mismatch = ratios.log_ratio("old/rollout")
        log_w = ratios.sequence_sum(mismatch)
        keep = (log_w >= log_bound(self.low)) & (log_w <= math.log(self.high))
        keep &= _not_vetoed(ratios, mismatch, self.veto)
        if self.weighting == "none":
            return update * ratios.spread(keep)
        return update * ratios.spread(bounded_exp(log_w.masked_fill(~keep, 0.0)) * keep)


@register_method
@dataclass(frozen=True, slots=True)
class GeoRS(GradientView):
    """Geometric rejection sampling: phi = PPO(pi / pi_old) * 1[low <= s <= high].

    s = exp(mean log(pi_old / mu)).

    [0.999, 1.001] (verl `decoupled_geo_rs`), [0.99, 1.01] (SkyRL), [0.9999, 1.0001] (slime's comment).
    Without pi_old s is of pi / mu. `veto` drops a sequence with any ratio below it (slime 1e-4; 0 is off).

    s lies near exp(-kappa), kappa the KL per token: a narrow band centred on 1 rejects most responses as soon
    as kappa passes its half-width. `weighting` is what a kept response's tokens are multiplied with: "none"
    (verl), "token" their own pi_old / mu up to `cap` (verl's geo_rs_token_tis; NeMo-RL seq-mask-tis, OpenRLHF
    and ms-swift sequence_mask, all without a cap), "sequence" W up to `cap` (verl's geo_rs_seq_tis).
    `variant` "verl" reads the bounds as verl's `seq_mean_k1` does: of the inverse ratio, so it keeps s in [1
    / high, 1 / low].
    """

    name: ClassVar[str] = "geo_rs"
    label: ClassVar[str] = "Geo-RS"
    level: ClassVar[Level] = "sequence"
    reads: ClassVar[str] = _READS

    low: float = field(default=0.999, metadata=NOT_NEGATIVE)
    high: float = field(default=1.001, metadata=POSITIVE)
    veto: float = field(default=0.0, metadata=FRACTION)
    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)
    variant: Literal["ratio", "verl"] = field(default="ratio", metadata=one_of("ratio", "verl"))
    weighting: Literal["none", "token", "sequence"] = field(
        default="none", metadata=one_of("none", "token", "sequence")
    )
    cap: float | None = field(default=None, metadata=limits(optional=True))

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update, or nothing."""
        update = clipped_ratio(ratios.update(), ratios.positive, self.eps_low, self.eps_high)
        mismatch = ratios.log_ratio("old/rollout")
        statistic = ratios.sequence_mean(-mismatch if self.variant == "verl" else mismatch)
        keep = (statistic >= log_bound(self.low)) & (statistic <= math.log(self.high))
        kept = update * ratios.spread(keep & _not_vetoed(ratios, mismatch, self.veto))
        if self.weighting == "none":
            return kept
        log_weight = mismatch if self.weighting == "token" else ratios.spread(ratios.sequence_sum(mismatch))
        ceiling = math.inf if self.cap is None else log_bound(self.cap)
        return kept * bounded_exp(log_weight.clamp(max=ceiling))


@register_method
@dataclass(frozen=True, slots=True)
class K3RS(GradientView):
    """K3 rejection sampling: phi = PPO(pi / pi_old) * 1[mean k3 <= bound].

    k3 = k - 1 - log k, k = pi_old / mu.

    `variant` "areal" takes 1 / k - 1 + log k, which is what AReaL's kl_k3 computes: under samples of mu it
    does not estimate this divergence, and a token that the trainer finds unlikely counts exponentially. bound
    0.01 (verl `decoupled_k3_rs`; typically 0.001 to 0.01). Without pi_old k is pi / mu.
    """

    name: ClassVar[str] = "k3_rs"
    label: ClassVar[str] = "K3-RS"
    level: ClassVar[Level] = "sequence"
    reads: ClassVar[str] = _READS

    bound: float = field(default=0.01, metadata=NOT_NEGATIVE)
    veto: float = field(default=0.0, metadata=FRACTION)
    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)
    variant: Literal["k3", "areal"] = field(default="k3", metadata=one_of("k3", "areal"))

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update, or nothing."""
        update = clipped_ratio(ratios.update(), ratios.positive, self.eps_low, self.eps_high)
        mismatch = ratios.log_ratio("old/rollout")
        argument = -mismatch if self.variant == "areal" else mismatch
        k3 = ratios.sequence_mean(argument.clamp(max=650.0).expm1() - argument)
        return update * ratios.spread((k3 <= self.bound) & _not_vetoed(ratios, mismatch, self.veto))


@register_method
@dataclass(frozen=True, slots=True)
class Opsm(GradientView):
    """Off-policy sequence masking: phi = PPO(pi / pi_old), and 0 where A < 0 and mean log(mu / pi) > delta.

    DeepSeek-V3.2 equation 9; TRL `off_policy_mask_threshold` (no default; 0.5 in examples); slime
    `--opsm-delta`, whose default 1e-4 drops nearly every A < 0 response at the mismatch of a BF16 rollout.
    """

    name: ClassVar[str] = "opsm"
    label: ClassVar[str] = "OPSM"
    level: ClassVar[Level] = "sequence"
    reads: ClassVar[str] = "train/old * train/rollout"

    delta: float = field(default=0.5, metadata=NOT_NEGATIVE)
    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update, or nothing."""
        update = clipped_ratio(ratios.update(), ratios.positive, self.eps_low, self.eps_high)
        drift = ratios.spread(ratios.sequence_mean(-ratios.log_ratio("train/rollout")))
        return update * (ratios.positive | (drift <= self.delta))


@register_method
@dataclass(frozen=True, slots=True)
class M2PO(GradientView):
    """M2PO: phi = rho = pi / mu; the largest squared log-ratios are dropped until their mean is below tau.

    arXiv 2510.01161; tau 0.04. The second moment is of pi_old / mu (AReaL: proximal against behaviour
    policy), or of pi / mu without pi_old; taken over the whole batch, strictly below tau, and at least one
    token is kept. Which of two tokens with equal squares goes first is not defined.
    """

    name: ClassVar[str] = "m2po"
    label: ClassVar[str] = "M2PO"
    reads: ClassVar[str] = "train/rollout, masked by old/rollout"

    tau: float = field(default=0.04, metadata=POSITIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The ratio of the tokens kept."""
        import torch

        inside = ratios.mask.nonzero().reshape(-1)
        squares = ratios.log_ratio("old/rollout")[inside].square()
        keep = torch.zeros_like(ratios.mask)
        if len(inside):
            ordered, order = squares.sort(descending=True, stable=True)
            counts = torch.arange(len(ordered), 0, -1, dtype=torch.float64, device=ordered.device)
            rest_mean = ordered.flip(0).cumsum(0).flip(0) / counts
            below = (rest_mean < self.tau).nonzero()
            dropped = int(below[0]) if len(below) else len(ordered) - 1
            keep[inside[order[dropped:]]] = True
        return bounded_exp(ratios.log_ratio("train/rollout")) * keep
