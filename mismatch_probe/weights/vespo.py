"""VESPO and its length-normalised ablations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from mismatch_probe.weights.hyperparameters import NOT_NEGATIVE, limits, one_of
from mismatch_probe.weights.method import GradientView, Level
from mismatch_probe.weights.ratios import Ratios, bounded_exp, by_sign
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch

_FLOOR = math.log(1e-8)
_CLAMP = 20.0
_MIN_RATE = 1e-4
_LOG_ZERO = -1e6  # stands for log 0 in a sum, where -inf would turn 0 * inf into NaN


@register_method
@dataclass(frozen=True, slots=True)
class Vespo(GradientView):
    """VESPO: a soft kernel on the weight of the whole response, by the sign of the advantage.

    phi = W^k exp(lambda (1 - W)), W = prod pi / mu; (k, lambda) = (2, 3) for A >= 0, (3, 2) for A < 0, by the
    sign of the first token that counts. phi(1) = 1. `reads` says what W contains, `variant` whose clamps it
    has, `is_mode` how pi_old / mu is treated, between `is_min` and `is_max`, before it enters W. Without
    pi_old W is of pi / mu.

    Source: arXiv 2602.10693 v3 equation 17; FloyedShen/VESPO `core_algos.py`; TRL `vespo_*`. In token-mean.

    Trap: phi peaks at W = k / lambda, where it is 1.21 for A >= 0 and 1.24 for A < 0, and falls on both sides: the
    order of responses by W is not kept.

    Trap: in the synchronous scripts W is pi / pi_old, recomputed by the trainer: the mismatch is then not in W.

    Trap: log W adds up over tokens: a drift of 1e-3 nats a token leaves 5 % of the signal at 8000 tokens.

    Trap: one token masked before W (TRL `token_mask`) puts log 1e-8 = -18.4 into log W: the response gets nothing.

    Trap: the fork with verl's rollout_is=sequence sums the weight of the response once per token
    (`is_mode` "sequence_broadcast").
    """

    name: ClassVar[str] = "vespo"
    label: ClassVar[str] = "VESPO"
    level: ClassVar[Level] = "sequence"
    kept_above: ClassVar[float] = 0.01

    k_pos: float = field(default=2.0, metadata=NOT_NEGATIVE)
    lambda_pos: float = field(default=3.0, metadata=NOT_NEGATIVE)
    k_neg: float = field(default=3.0, metadata=NOT_NEGATIVE)
    lambda_neg: float = field(default=2.0, metadata=NOT_NEGATIVE)
    reads: Literal["train/rollout", "train/old"] = field(
        default="train/rollout",
        metadata=one_of(
            {
                "train/rollout": "W of pi / mu (fully-async recipe; TRL with vLLM correction)",
                "train/old": "W of pi / pi_old (synchronous scripts); pi / mu without pi_old",
            }
        ),
    )
    variant: Literal["exact", "repo", "trl"] = field(
        default="exact",
        metadata=one_of(
            {
                "exact": "no clamps (the paper)",
                "repo": "log-ratios and log W within +-20, log W floored at log 1e-8 in the power; lambda >= 1e-4",
                "trl": "log-ratios within +-20, log W within [log 1e-8, 20]; lambda >= 1e-4",
            }
        ),
    )
    is_mode: Literal["none", "token_truncate", "token_mask", "sequence_broadcast"] = field(
        default="none",
        metadata=one_of(
            {
                "none": "pi_old / mu as it is",
                "token_truncate": "clamped between is_min and is_max (TRL token_truncate; verl rollout_is=token)",
                "token_mask": "0 outside, which silences the response (TRL token_mask; verl with IcePop bounds)",
                "sequence_broadcast": "the weight of the response, once per token (the fork, rollout_is=sequence)",
            }
        ),
    )
    is_max: float | None = field(default=3.0, metadata=limits(optional=True))
    is_min: float | None = field(default=None, metadata=limits(optional=True))

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The kernel of the sequence weight."""
        log_w = self._normalise(self.log_weight(ratios), ratios.lengths)
        positive = ratios.sequence_positive()
        floor = 0.0 if self.variant == "exact" else _MIN_RATE
        power = by_sign(positive, self.k_pos, self.k_neg)
        rate = by_sign(positive, max(self.lambda_pos, floor), max(self.lambda_neg, floor))
        log_power = log_w.clamp(min=_FLOOR) if self.variant == "repo" else log_w
        exponent = power * log_power - rate * log_w.clamp(max=690.0).expm1()
        return ratios.spread(bounded_exp(exponent))

    def log_weight(self, ratios: Ratios) -> torch.Tensor:
        """Log W as this variant sees it, [sequences]."""
        update = ratios.log_ratio("train/old")
        clamps = self.variant != "exact"
        if clamps:
            update = update.clamp(-_CLAMP, _CLAMP)
        log_w = ratios.sequence_sum(update)
        if ratios.old is not None and self.reads == "train/rollout":
            mismatch = ratios.log_ratio("old/rollout")
            if self.is_mode == "sequence_broadcast":
                mismatch = ratios.spread(ratios.sequence_sum(mismatch))
            log_w = log_w + ratios.sequence_sum(self._treated(mismatch))
        if clamps:
            log_w = log_w.clamp(_FLOOR if self.variant == "trl" else -_CLAMP, _CLAMP)
        return log_w

    def _treated(self, log_is: torch.Tensor) -> torch.Tensor:
        low = _LOG_ZERO if not self.is_min else math.log(self.is_min)
        high = math.inf if self.is_max is None else math.log(self.is_max)
        if self.is_mode in ("token_truncate", "sequence_broadcast"):
            log_is = log_is.clamp(low, high)
        elif self.is_mode == "token_mask":
            log_is = log_is.masked_fill((log_is < low) | (log_is > high), _LOG_ZERO)
        return log_is if self.variant == "exact" else log_is.clamp(_FLOOR, _CLAMP)

    def _normalise(self, log_w: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return log_w


@register_method
@dataclass(frozen=True, slots=True)
class VespoSqrt(Vespo):
    """VESPO-sqrt: an ablation of the paper, which survives with spikes of the gradient.

    phi = V^k exp(lambda (1 - V)), V = W^(1 / sqrt(T)); all else as in VESPO.

    Source: arXiv 2602.10693 v3, ablation of length normalisation.

    Trap: V still moves away from 1 with length, only slower: log V grows as sqrt(T).
    """

    name: ClassVar[str] = "vespo_sqrt"
    label: ClassVar[str] = "VESPO-sqrt"

    def _normalise(self, log_w: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return log_w / lengths.clamp(min=1.0).sqrt()


@register_method
@dataclass(frozen=True, slots=True)
class VespoLin(Vespo):
    """VESPO-lin: an ablation of the paper, which collapses at about step 350.

    phi = s^k exp(lambda (1 - s)), s = W^(1/T); all else as in VESPO.

    Source: arXiv 2602.10693 v3, ablation of length normalisation.

    Trap: s is so close to 1 that this is REINFORCE without a correction.
    """

    name: ClassVar[str] = "vespo_lin"
    label: ClassVar[str] = "VESPO-lin"

    def _normalise(self, log_w: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return log_w / lengths.clamp(min=1.0)
