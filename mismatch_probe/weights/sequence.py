"""Methods that clip the geometric mean of the ratios of a response."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from mismatch_probe.weights.aggregation import Aggregation
from mismatch_probe.weights.clipped import STALE_READS, StaleReads, clipped_ratio
from mismatch_probe.weights.hyperparameters import FRACTION, NOT_NEGATIVE, one_of
from mismatch_probe.weights.method import GradientView, Level
from mismatch_probe.weights.ratios import Ratios, bounded_exp
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch

_LOG_CEILING = 10.0


@register_method
@dataclass(frozen=True, slots=True)
class Gspo(GradientView):
    """GSPO: PPO's clip on the geometric mean of the ratios of a response.

    phi = s if A >= 0 and s <= 1 + eps_high, or A < 0 and s >= 1 - eps_low; else 0. s = W^(1/T) of pi /
    pi_old, or pi / mu without pi_old, capped at e^10. In seq-mean-token-mean: each token's gradient is phi /
    T within its sequence.

    Source: group sequence policy optimization, arXiv 2507.18071; 3e-4 / 4e-4.

    Trap: fed with pi / mu, s ~ 1 - kappa (the KL per token): for kappa above eps_low nearly every A < 0
    response is masked and no A >= 0 one.

    Trap: no framework has the paper's bounds as a default: verl, TRL, slime, NeMo-RL, AReaL and SkyRL have 0.2.

    Trap: verl and SkyRL clamp log s at 10 and have no gradient above it; for A < 0 nothing else bounds s.
    """

    name: ClassVar[str] = "gspo"
    label: ClassVar[str] = "GSPO"
    level: ClassVar[Level] = "sequence"
    aggregation: ClassVar[Aggregation] = "seq-mean-token-mean"

    eps_low: float = field(default=3e-4, metadata=FRACTION)
    eps_high: float = field(default=4e-4, metadata=NOT_NEGATIVE)
    variant: Literal["capped", "paper", "verl"] = field(
        default="capped",
        metadata=one_of(
            {
                "capped": "s at most e^10: the value that verl's loss has",
                "paper": "s as it is (also TRL, slime, NeMo-RL, AReaL, OpenRLHF)",
                "verl": "nothing where log s is above 10: the gradient that verl's loss has (also SkyRL)",
            }
        ),
    )
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped geometric mean."""
        log_s = ratios.spread(ratios.sequence_mean(ratios.log_ratio(self.reads)))
        bounded = log_s if self.variant == "paper" else log_s.clamp(max=_LOG_CEILING)
        clipped = clipped_ratio(bounded, ratios.positive, self.eps_low, self.eps_high)
        return clipped * (log_s <= _LOG_CEILING) if self.variant == "verl" else clipped


@register_method
@dataclass(frozen=True, slots=True)
class GspoToken(Gspo):
    """GSPO-token: GSPO with an advantage of its own for each token.

    phi = s if A_t >= 0 and s <= 1 + eps_high, or A_t < 0 and s >= 1 - eps_low; else 0: sg[s] rho / sg[rho] in
    place of s.

    Source: arXiv 2507.18071 equations 14-15; what verl, SkyRL and ms-swift (sequence_token) run under "gspo".

    Trap: value and gradient are GSPO's where A is constant over a response: nothing is gained there.
    """

    name: ClassVar[str] = "gspo_token"
    label: ClassVar[str] = "GSPO-token"


@register_method
@dataclass(frozen=True, slots=True)
class Luspo(Gspo):
    """LUSPO: GSPO times the length, so that long responses are not diluted.

    phi = T s if A >= 0 and s <= 1 + eps_high, or A < 0 and s >= 1 - eps_low; else 0, on the scale of
    seq-mean-token-mean: s a token in a sum over tokens. s of pi / pi_old, or pi / mu without pi_old.

    Source: arXiv 2602.05261; 2e-3 / 2.5e-3.

    Trap: in TRL `loss_type="luspo"` alone keeps importance_sampling_level "token": PPO's clip, summed by response.
    """

    name: ClassVar[str] = "luspo"
    label: ClassVar[str] = "LUSPO"

    eps_low: float = field(default=2e-3, metadata=FRACTION)
    eps_high: float = field(default=2.5e-3, metadata=NOT_NEGATIVE)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped geometric mean times the length."""
        return Gspo.phi(self, ratios) * ratios.spread(ratios.lengths)


@register_method
@dataclass(frozen=True, slots=True)
class Gmpo(GradientView):
    """GMPO: the geometric mean of clamped ratios, on the tokens that were not clamped.

    phi = s~ = exp(mean of clamped log rho) where the token's own was not clamped, else 0. The clamp is
    one-sided: log rho <= eps_high for A >= 0, log rho >= -eps_low for A < 0. rho = pi / pi_old, or pi / mu
    without pi_old. In seq-mean-token-mean, on the scale of GSPO's.

    Source: arXiv 2507.20673; 0.4 / 0.4; verl `geo_mean` with its clip_ratio, 0.2 / 0.2.

    Trap: the bounds are of log rho, not of rho - 1.

    Trap: verl turns weights of the mismatch into their geometric mean before they multiply this loss.
    """

    name: ClassVar[str] = "gmpo"
    label: ClassVar[str] = "GMPO"
    aggregation: ClassVar[Aggregation] = "seq-mean-token-mean"

    eps_low: float = field(default=0.4, metadata=NOT_NEGATIVE)
    eps_high: float = field(default=0.4, metadata=NOT_NEGATIVE)
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The geometric mean of clamped ratios, where a token's own was not."""
        log_ratio = ratios.log_ratio(self.reads)
        clamped = log_ratio.clamp(max=self.eps_high).where(
            ratios.positive, log_ratio.clamp(min=-self.eps_low)
        )
        mean = ratios.spread(bounded_exp(ratios.sequence_mean(clamped)))
        return mean * (clamped == log_ratio)
