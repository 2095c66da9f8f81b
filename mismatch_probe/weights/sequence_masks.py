"""Methods that drop whole responses by the size of their mismatch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from mismatch_probe.weights.clipped import StaleReads
from mismatch_probe.weights.decoupled import (
    WEIGHTING,
    Decoupled,
    Weighting,
    not_vetoed,
    survivors_weight,
    within,
)
from mismatch_probe.weights.hyperparameters import FRACTION, NOT_NEGATIVE, OPTIONAL_BOUND, POSITIVE, one_of
from mismatch_probe.weights.method import Level
from mismatch_probe.weights.ratios import Ratios
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch

_CLAMP = 20.0

Bounds = Literal["ratio", "verl"]
BOUNDS = one_of(
    {
        "ratio": "bounds of the ratio itself",
        "verl": "bounds of the inverse ratio, as verl's *_k1 has them: low to high keeps 1 / high to 1 / low",
    }
)


@dataclass(frozen=True, slots=True)
class _SequenceMask(Decoupled):
    """Base: a mask by sequence, a veto by token, and a weight for what stays."""

    level: ClassVar[Level] = "sequence"

    weighting: Weighting = field(default="none", metadata=WEIGHTING)
    cap: float | None = field(default=None, metadata=OPTIONAL_BOUND)
    veto: float = field(default=0.0, metadata=FRACTION)
    veto_high: float | None = field(default=None, metadata=OPTIONAL_BOUND)

    def kept(self, ratios: Ratios, keep: torch.Tensor) -> torch.Tensor:
        """The clipped update and the weight of the responses to keep, bool [sequences]."""
        mismatch = ratios.log_ratio(self.mismatch)
        keep = ratios.spread(keep & not_vetoed(ratios, mismatch, self.veto, self.veto_high))
        weight = survivors_weight(ratios, mismatch.masked_fill(~keep, 0.0), self.weighting, self.cap)
        return self.update(ratios) * weight * keep


@register_method
@dataclass(frozen=True, slots=True)
class SequenceMIS(_SequenceMask):
    """Masked importance sampling by sequence: the weight of a response inside a band, nothing outside.

    phi = PPO(pi / pi_old) * W 1[low <= W <= high], W = prod pi_old / mu. Without pi_old W is of pi / mu.
    `weighting` "none" masks without the weight; `veto`, `veto_high` drop a response with any ratio outside.

    Source: verl `decoupled_seq_is_rs` [0.5, 2]; TRL `sequence_mask`, its default mode, [0, 3]; SkyRL's product mask
    [0.5, 2] without the weight; SkyRL outliers [1e-4, 100]; slime veto 1e-4.

    Trap: W grows with length: at a drift of 0.012 nats a token a response of 100 tokens leaves TRL's band.

    Trap: verl's seq_sum_k1 bounds are of 1 / W (`variant` "verl"); symmetric ones hide it.
    """

    name: ClassVar[str] = "seq_mis"
    label: ClassVar[str] = "sequence MIS"

    low: float = field(default=0.5, metadata=NOT_NEGATIVE)
    high: float = field(default=2.0, metadata=POSITIVE)
    weighting: Weighting = field(default="sequence", metadata=WEIGHTING)
    variant: Bounds = field(default="ratio", metadata=BOUNDS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update, times the sequence weight or nothing."""
        mismatch = ratios.log_ratio(self.mismatch)
        if self.variant == "verl":
            mismatch = -mismatch.clamp(-_CLAMP, _CLAMP)
        return self.kept(ratios, within(ratios.sequence_sum(mismatch), self.low, self.high))


@register_method
@dataclass(frozen=True, slots=True)
class GeoRS(_SequenceMask):
    """Geometric rejection sampling: responses stay where the geometric mean of their ratios is close to 1.

    phi = PPO(pi / pi_old) * 1[low <= s <= high], s = exp(mean log(pi_old / mu)). Without pi_old s is of pi /
    mu. `weighting` multiplies what stays, up to `cap`; `veto`, `veto_high` drop a response with any ratio
    outside.

    Source: verl `decoupled_geo_rs` [0.999, 1.001]; SkyRL [0.99, 1.01]; NeMo-RL seq-mask-tis [0.999, 1.002];
    slime's comment [0.9999, 1.0001]; AReaL and ms-swift (upper bound only); OpenRLHF [0.5, 5].

    Trap: s lies near exp(-kappa), kappa the KL per token: a narrow band around 1 rejects most responses as
    soon as kappa passes its half-width.

    Trap: verl's seq_mean_k1 bounds are of 1 / s (`variant` "verl"), which also clamps each log-ratio to +-20.
    """

    name: ClassVar[str] = "geo_rs"
    label: ClassVar[str] = "Geo-RS"

    low: float = field(default=0.999, metadata=NOT_NEGATIVE)
    high: float = field(default=1.001, metadata=POSITIVE)
    variant: Bounds = field(default="ratio", metadata=BOUNDS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update and what survivors weigh, or nothing."""
        mismatch = ratios.log_ratio(self.mismatch)
        if self.variant == "verl":
            mismatch = -mismatch.clamp(-_CLAMP, _CLAMP)
        return self.kept(ratios, within(ratios.sequence_mean(mismatch), self.low, self.high))


@register_method
@dataclass(frozen=True, slots=True)
class K3RS(_SequenceMask):
    """K3 rejection sampling: responses stay where their mean K3 divergence is small.

    phi = PPO(pi / pi_old) * 1[mean k3 <= bound], k3 = k - 1 - log k, k = pi_old / mu. Without pi_old k is pi
    / mu. `weighting` multiplies what stays, up to `cap`.

    Source: verl `decoupled_k3_rs`, 0.01 (typically 0.001 to 0.01); AReaL metric=kl_k3, 5.0.

    Trap: AReaL's kl_k3 is 1 / k - 1 + log k (`variant` "areal"): under samples of mu it does not estimate this
    divergence, and a token that the trainer finds unlikely counts exponentially.

    Trap: one outlier token of k = 20 weighs 16 / T, enough to drop a response of 1600 tokens at 0.01.
    """

    name: ClassVar[str] = "k3_rs"
    label: ClassVar[str] = "K3-RS"

    bound: float = field(default=0.01, metadata=NOT_NEGATIVE)
    variant: Literal["k3", "verl", "areal"] = field(
        default="k3",
        metadata=one_of(
            {
                "k3": "k - 1 - log k",
                "verl": "k - 1 - log k of log k within +-20 (seq_mean_k3)",
                "areal": "1 / k - 1 + log k (metric=kl_k3)",
            }
        ),
    )

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update and what survivors weigh, or nothing."""
        mismatch = ratios.log_ratio(self.mismatch)
        argument = -mismatch if self.variant == "areal" else mismatch
        if self.variant == "verl":
            argument = argument.clamp(-_CLAMP, _CLAMP)
        k3 = ratios.sequence_mean(argument.clamp(max=650.0).expm1() - argument)
        return self.kept(ratios, k3 <= self.bound)


@register_method
@dataclass(frozen=True, slots=True)
class Opsm(Decoupled):
    """Off-policy sequence masking: negative responses go where the policy has moved away from them.

    phi = PPO(pi / pi_old), and 0 where A < 0 and mean log(mu / pi) > delta. `drift` says what is compared; `mismatch` is
    not read.

    Source: DeepSeek-V3.2, arXiv 2512.02556 equation 9; TRL `off_policy_mask_threshold` and ms-swift
    `off_policy_sequence_mask_delta` (no default; 0.5 in examples); slime and miles `--opsm-delta` 1e-4.

    Trap: a one-sided geometric mask: fed with pi / mu, slime's default drops nearly every A < 0 response at the
    mismatch of a BF16 rollout.

    Trap: slime and miles compare with pi_old unless told `--use-rollout-logprobs`, and then do not see the mismatch.
    """

    name: ClassVar[str] = "opsm"
    label: ClassVar[str] = "OPSM"
    level: ClassVar[Level] = "sequence"

    delta: float = field(default=0.5, metadata=NOT_NEGATIVE)
    drift: StaleReads = field(
        default="train/rollout",
        metadata=one_of(
            {
                "train/rollout": "the mean of log(mu / pi) (the paper, TRL, ms-swift)",
                "train/old": "the mean of log(pi_old / pi) (slime, miles)",
            }
        ),
    )

    @property
    def reads(self) -> str:
        """Which ratio phi looks at."""
        if self.objective == "none" or self.drift == "train/old":
            return self.drift
        return f"train/old * {self.drift}"

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update, or nothing."""
        drift = ratios.spread(ratios.sequence_mean(-ratios.log_ratio(self.drift)))
        return self.update(ratios) * (ratios.positive | (drift <= self.delta))
