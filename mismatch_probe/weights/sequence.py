"""Methods that clip the geometric mean of the ratios of a response."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mismatch_probe.weights.aggregation import Aggregation
from mismatch_probe.weights.clipped import STALE_READS, StaleReads, clipped_ratio
from mismatch_probe.weights.hyperparameters import FRACTION, NOT_NEGATIVE
from mismatch_probe.weights.method import GradientView, Level
from mismatch_probe.weights.ratios import Ratios, bounded_exp
from mismatch_probe.weights.registry import register_method

if TYPE_CHECKING:
    import torch


def _log_geometric_mean(ratios: Ratios, reads: StaleReads, ceiling: float) -> torch.Tensor:
    """Log s = mean of the log-ratios, capped as verl does, [tokens]."""
    return ratios.spread(ratios.sequence_mean(ratios.log_ratio(reads)).clamp(max=ceiling))


@register_method
@dataclass(frozen=True, slots=True)
class Gspo(GradientView):
    """GSPO: phi = s if (A >= 0 and s <= 1 + eps_high) or (A < 0 and s >= 1 - eps_low), else 0; s = W^(1/T).

    Group sequence policy optimization, arXiv 2507.18071; eps 3e-4 / 4e-4. s is of pi / pi_old, or pi / mu
    without pi_old. The loss is seq-mean-token-mean: each token's gradient is phi / T within its sequence. log
    s is capped at 10 (verl).

    Trap: fed with pi / mu, s ~ 1 - kappa (the KL per token), so for kappa above eps_low nearly every A < 0
    response is masked and no A >= 0 one.
    """

    name: ClassVar[str] = "gspo"
    label: ClassVar[str] = "GSPO"
    level: ClassVar[Level] = "sequence"
    aggregation: ClassVar[Aggregation] = "seq-mean-token-mean"

    eps_low: float = field(default=3e-4, metadata=FRACTION)
    eps_high: float = field(default=4e-4, metadata=NOT_NEGATIVE)
    log_ceiling: float = field(default=10.0, metadata=NOT_NEGATIVE)
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped geometric mean."""
        log_s = _log_geometric_mean(ratios, self.reads, self.log_ceiling)
        return clipped_ratio(log_s, ratios.positive, self.eps_low, self.eps_high)


@register_method
@dataclass(frozen=True, slots=True)
class GspoToken(Gspo):
    """GSPO-token: sg[s] rho / sg[rho] in place of s (arXiv 2507.18071).

    The same value and gradient as GSPO where A is constant over a response; with an advantage per token each
    token is clipped by its own sign.
    """

    name: ClassVar[str] = "gspo_token"
    label: ClassVar[str] = "GSPO-token"


@register_method
@dataclass(frozen=True, slots=True)
class Luspo(GradientView):
    """LUSPO: GSPO times the length T, so that long responses are not diluted.

    arXiv 2602.05261; eps 2e-3 / 2.5e-3. phi is T s on the scale of seq-mean-token-mean, that is s a token in
    a sum over tokens. Reads pi / pi_old, or pi / mu without pi_old.
    """

    name: ClassVar[str] = "luspo"
    label: ClassVar[str] = "LUSPO"
    level: ClassVar[Level] = "sequence"
    aggregation: ClassVar[Aggregation] = "seq-mean-token-mean"

    eps_low: float = field(default=2e-3, metadata=FRACTION)
    eps_high: float = field(default=2.5e-3, metadata=NOT_NEGATIVE)
    log_ceiling: float = field(default=10.0, metadata=NOT_NEGATIVE)
    reads: StaleReads = field(default="train/old", metadata=STALE_READS)

    def phi(self, ratios: Ratios) -> torch.Tensor:
        """The clipped geometric mean times the length."""
        log_s = _log_geometric_mean(ratios, self.reads, self.log_ceiling)
        return clipped_ratio(log_s, ratios.positive, self.eps_low, self.eps_high) * ratios.spread(
            ratios.lengths
        )


@register_method
@dataclass(frozen=True, slots=True)
class Gmpo(GradientView):
    """GMPO: phi = s~ = exp(mean of clamped log-ratios) on tokens that were not clamped, 0 on the others.

    verl `geo_mean`: the clamp is one-sided, log rho <= eps_high for A >= 0 and log rho >= -eps_low for A < 0,
    in log space (0.4 / 0.4). The loss is a mean over sequences of -A s~, so a token's gradient is s~ / T:
    here phi = s~ with seq-mean-token-mean, on the scale of GSPO's. Reads pi / pi_old, or pi / mu without
    pi_old.
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
