"""Methods that split pi / mu into an update, pi / pi_old, and a mismatch, pi_old / mu, and treat each its own way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mismatch_probe.weights.clipped import clipped_ratio
from mismatch_probe.weights.hyperparameters import (
    FRACTION,
    NOT_NEGATIVE,
    OPTIONAL_BOUND,
    OPTIONAL_CEILING,
    one_of,
)
from mismatch_probe.weights.method import GradientView
from mismatch_probe.weights.ratios import Ratios, bounded_exp

if TYPE_CHECKING:
    import torch

Normalise = Literal["none", "mean"]
NORMALISE = one_of(
    {
        "none": "weights as they are",
        "mean": "weights over their mean in the batch (verl rollout_is_batch_normalize; slime tis_batch_normalize)",
    }
)

Objective = Literal["ppo", "none"]
OBJECTIVE = one_of(
    {
        "ppo": "PPO's clip of pi / pi_old under it",
        "none": "the mismatch's factor alone, where a framework puts it on another objective (verl, TRL, SkyRL)",
    }
)

Mismatch = Literal["old/rollout", "train/rollout"]
MISMATCH = one_of(
    {
        "old/rollout": "weights and masks of pi_old / mu, and of pi / mu without pi_old",
        "train/rollout": "of pi / mu, where the trainer takes mu for pi_old (verl bypass_mode)",
    }
)

Weighting = Literal["none", "token", "sequence", "mean"]
WEIGHTING = one_of(
    {
        "none": "a mask only (verl without rollout_is, SkyRL)",
        "token": "tokens keep pi_old / mu, up to the cap (NeMo-RL, OpenRLHF, ms-swift; verl *_token_tis)",
        "sequence": "tokens share W = prod pi_old / mu, up to the cap (verl *_seq_tis)",
        "mean": "tokens share W^(1/T), up to the cap (AReaL)",
    }
)


def log_bound(value: float | None, missing: float = math.inf) -> float:
    """log(value), with -inf for 0 and `missing` for None."""
    if value is None:
        return missing
    return math.log(value) if value > 0 else -math.inf


@dataclass(frozen=True, slots=True)
class Decoupled(GradientView):
    """Base of methods whose update factor is PPO's clip; what it does with the mismatch is the subclass's.

    Attributes:
        eps_low: Distance of the clip's floor from 1.
        eps_high: Distance of the clip's cap from 1.
        dual_c: Largest pi / pi_old that passes with A < 0, or None (verl: 3).
        clamp: No gradient where |log pi - log pi_old| is above it, or None (verl, SkyRL, OpenRLHF: 20).
        objective: "ppo", or "none": the update factor is 1 and the four above are not read.
        mismatch: The ratio that weights and masks look at.
    """

    eps_low: float = field(default=0.2, metadata=FRACTION)
    eps_high: float = field(default=0.2, metadata=NOT_NEGATIVE)
    dual_c: float | None = field(default=None, metadata=OPTIONAL_CEILING)
    clamp: float | None = field(default=None, metadata=OPTIONAL_BOUND)
    objective: Objective = field(default="ppo", metadata=OBJECTIVE)
    mismatch: Mismatch = field(default="old/rollout", metadata=MISMATCH)

    @property
    def reads(self) -> str:
        """Which ratios phi looks at."""
        return self.factors_read()

    def factors_read(self) -> str:
        """That of the mismatch alone, or that of the update and it."""
        return self.mismatch if self.objective == "none" else f"train/old * {self.mismatch}"

    def update(self, ratios: Ratios) -> torch.Tensor:
        """PPO(pi / pi_old): the clipped ratio; 1 without pi_old and without an objective, [tokens]."""
        import torch

        if self.objective == "none":
            return torch.ones_like(ratios.train)
        return clipped_ratio(
            ratios.update(),
            ratios.positive,
            self.eps_low,
            self.eps_high,
            ceiling=self.dual_c,
            clamp=self.clamp,
        )


def not_vetoed(ratios: Ratios, log_ratio: torch.Tensor, low: float, high: float | None) -> torch.Tensor:
    """False for each sequence with a token whose ratio leaves [low, high], bool [sequences].

    Args:
        ratios: The batch.
        log_ratio: [tokens].
        low: Lower bound of the ratio; 0 is none.
        high: Upper bound, or None.
    """
    outside = (log_ratio < log_bound(low)) | (log_ratio > log_bound(high))
    return ratios.sequence_sum(outside.to(log_ratio.dtype)) == 0


def within(log_value: torch.Tensor, low: float | None, high: float | None) -> torch.Tensor:
    """True where a log-value lies in [log low, log high]; None is no bound."""
    return (log_value >= log_bound(low, -math.inf)) & (log_value <= log_bound(high))


def survivors_weight(
    ratios: Ratios, log_ratio: torch.Tensor, weighting: Weighting, cap: float | None
) -> torch.Tensor | float:
    """What the tokens of a kept response are multiplied with, [tokens]."""
    if weighting == "none":
        return 1.0
    if weighting == "sequence":
        log_ratio = ratios.spread(ratios.sequence_sum(log_ratio))
    elif weighting == "mean":
        log_ratio = ratios.spread(ratios.sequence_mean(log_ratio))
    return bounded_exp(log_ratio.clamp(max=log_bound(cap)))


def over_mean(weights: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Weights over the mean of those that take part; as they are where that is below 1e-8."""
    count = int(inside.sum())
    mean = float(weights[inside].mean()) if count else 0.0
    return weights / mean if mean > 1e-8 else weights
