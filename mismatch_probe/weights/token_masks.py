"""Methods that drop single tokens by the size of their mismatch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from mismatch_probe.weights.decoupled import (
    NORMALISE,
    Decoupled,
    Normalise,
    over_mean,
    within,
)
from mismatch_probe.weights.divergences import binary_kl
from mismatch_probe.weights.hyperparameters import NOT_NEGATIVE, POSITIVE, one_of
from mismatch_probe.weights.ratios import Ratios, bounded_exp
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch


@register_method
@dataclass(frozen=True, slots=True)
class IcePop(Decoupled):
    """IcePop / MIS: the mismatch of a token is its weight inside a band, and drops it outside.

    phi = PPO(pi / pi_old) * k 1[low <= k <= high], k = pi_old / mu. Without pi_old the update factor is 1 and
    k = pi / mu. `weighting` "none" masks without the weight k; `normalise` divides the weights, dropped ones
    included, by their mean.

    Source: arXiv 2510.18855, [0.5, 5]; verl `decoupled_token_icepop` (`rollout_is_threshold="0.5_5.0"`), OpenRLHF,
    NeMo-RL; slime and miles [0, 2], AReaL [0, 5], TRL `token_mask` [0, 3].

    Trap: verl's `rollout_rs=token_k1` with the same two numbers keeps k in [1 / high, 1 / low]: its statistic
    is -log k.

    Trap: SkyRL's token mask, ROLL's filters and verl's rejection drop tokens but do not weigh those that stay.
    """

    name: ClassVar[str] = "icepop"
    label: ClassVar[str] = "IcePop / MIS"

    low: float = field(default=0.5, metadata=NOT_NEGATIVE)
    high: float = field(default=5.0, metadata=POSITIVE)
    weighting: Literal["token", "none"] = field(
        default="token",
        metadata=one_of(
            {
                "token": "what stays is weighed by k (the paper)",
                "none": "a mask only (SkyRL token mask, ROLL filters)",
            }
        ),
    )
    variant: Literal["paper", "verl_token_k1", "skyrl_rollout_is"] = field(
        default="paper",
        metadata=one_of(
            {
                "paper": "k of pi_old / mu, bounds of k",
                "verl_token_k1": "verl rollout_rs=token_k1: bounds of 1 / k (log-ratios clamped to +-20), a mask only",
                "skyrl_rollout_is": "SkyRL policy_loss_type=rollout_is: k = pi / mu, no clip, bounds do not pass",
            }
        ),
    )
    normalise: Normalise = field(default="none", metadata=NORMALISE)

    @property
    def reads(self) -> str:
        """Which ratio phi looks at."""
        return "train/rollout" if self.variant == "skyrl_rollout_is" else self.factors_read()

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update, times the ratio or nothing."""
        if self.variant == "skyrl_rollout_is":
            ratio = bounded_exp(ratios.log_ratio("train/rollout"))
            return ratio * ((ratio > self.low) & (ratio < self.high))
        mismatch = ratios.log_ratio(self.mismatch)
        if self.variant == "verl_token_k1":
            keep = within(-mismatch.clamp(-20.0, 20.0), self.low, self.high)
            return self.update(ratios) * keep
        keep = within(mismatch, self.low, self.high)
        if self.weighting == "none":
            return self.update(ratios) * keep
        weight = bounded_exp(mismatch.masked_fill(~keep, 0.0)) * keep
        if self.normalise == "mean":
            weight = over_mean(weight, ratios.mask)
        return self.update(ratios) * weight


@register_method
@dataclass(frozen=True, slots=True)
class M2PO(Decoupled):
    """M2PO: the largest squared log-ratios are dropped until the mean of the rest is below tau.

    phi = pi / mu on the tokens that stay. The second moment is of pi_old / mu, or of pi / mu without pi_old,
    over the whole batch, strictly below tau; at least one token stays.

    Source: arXiv 2510.01161; tau 0.04. AReaL `m2_threshold` (off unless set).

    Trap: a statement about a batch: the same token stays in one batch and goes in another, so micro-batches change it.

    Trap: which of two tokens with equal squares goes first is not defined.

    Trap: AReaL sorts within each micro-batch and keeps PPO's clip of pi / pi_old on what stays.
    """

    name: ClassVar[str] = "m2po"
    label: ClassVar[str] = "M2PO"

    tau: float = field(default=0.04, metadata=POSITIVE)
    variant: Literal["paper", "areal"] = field(
        default="paper",
        metadata=one_of(
            {
                "paper": "what stays is weighed by pi / mu, without a clip",
                "areal": "what stays has PPO(pi / pi_old), without the mismatch as a weight",
            }
        ),
    )

    @property
    def reads(self) -> str:
        """Which ratio phi looks at."""
        weighed = "train/rollout" if self.variant == "paper" else "train/old"
        return f"{weighed}, masked by {self.mismatch}"

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The ratio of the tokens kept."""
        import torch

        inside = ratios.mask.nonzero().reshape(-1)
        squares = ratios.log_ratio(self.mismatch)[inside].square()
        keep = torch.zeros_like(ratios.mask)
        if len(inside):
            ordered, order = squares.sort(descending=True, stable=True)
            counts = torch.arange(len(ordered), 0, -1, dtype=torch.float64, device=ordered.device)
            rest_mean = ordered.flip(0).cumsum(0).flip(0) / counts
            below = (rest_mean < self.tau).nonzero()
            dropped = int(below[0]) if len(below) else len(ordered) - 1
            keep[inside[order[dropped:]]] = True
        if self.variant == "areal":
            return self.update(ratios) * keep
        return bounded_exp(ratios.log_ratio("train/rollout")) * keep


@register_method
@dataclass(frozen=True, slots=True)
class KPop(Decoupled):
    """KPop: tokens stay where both binary divergences between trainer and rollout engine are small.

    phi = PPO(pi / pi_old) * 1[KL_B(pi_old || mu) <= bound] 1[KL_B(mu || pi_old) <= bound], KL_B of the two
    outcomes "this token" and "another". Without pi_old the update factor is 1 and pi stands for pi_old.

    Source: Ling / Ring 2.6 report, section 3.2.3; bound 2.0 nats in AReaL's example.

    Trap: 2 nats is a loose mask: p = 0.9 against 0.05 is 2.38. AReaL cbff54d refuses the metric its own example asks for.

    Trap: AReaL and OpenRLHF weigh what stays by k = pi_old / mu and clamp probabilities away from 0 and 1.
    """

    name: ClassVar[str] = "kpop"
    label: ClassVar[str] = "KPop"

    bound: float = field(default=2.0, metadata=NOT_NEGATIVE)
    variant: Literal["paper", "areal", "openrlhf"] = field(
        default="paper",
        metadata=one_of(
            {
                "paper": "both directions, a mask only",
                "areal": "both directions, probabilities within [1e-8, 1 - 1e-8], what stays weighed by k",
                "openrlhf": "KL_B(mu || pi_old) alone, probabilities within [1e-6, 1 - 1e-6], weighed by k",
            }
        ),
    )

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped update inside the trust region."""
        old = ratios.train if ratios.old is None or self.mismatch == "train/rollout" else ratios.old
        margin = {"paper": 0.0, "areal": 1e-8, "openrlhf": 1e-6}[self.variant]
        keep = binary_kl(ratios.rollout, old, margin=margin) <= self.bound
        if self.variant != "openrlhf":
            keep = keep & (binary_kl(old, ratios.rollout, margin=margin) <= self.bound)
        if self.variant == "paper":
            return self.update(ratios) * keep
        mismatch = ratios.log_ratio(self.mismatch).masked_fill(~keep, 0.0)
        return self.update(ratios) * bounded_exp(mismatch) * keep
