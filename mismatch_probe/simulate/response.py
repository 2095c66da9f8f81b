"""The result types of a simulation; they map one to one to `weights.methods.<name>` of result.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mismatch_probe.stats.estimate import Estimate

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """The weight of the responses of one range of lengths.

    Attributes:
        low: Shortest length, tokens.
        high: Longest length, tokens (inclusive).
        n: Sequences.
        mean: Mean phi of the bucket's entries (`MethodResponse.unit`).
        positive: Mean phi where A > 0, None without such entries.
        negative: Mean phi where A < 0, None without such entries.
        mean_log_weight: Mean of log W, nats.
    """

    low: int
    high: int
    n: int
    mean: float
    positive: float | None
    negative: float | None
    mean_log_weight: float


@dataclass(frozen=True, slots=True)
class WeightCurve:
    """phi as a function of log W, all of it mismatch that is spread evenly over the tokens.

    Attributes:
        log_weight: Grid, nats, float64 [points].
        positive: phi for A > 0.
        negative: phi for A < 0.
        length: Tokens of the response the curve was drawn for; it matters to length-normalised methods only.
    """

    log_weight: FloatArray
    positive: FloatArray
    negative: FloatArray
    length: int


@dataclass(frozen=True, slots=True)
class WeightPoints:
    """What the sequences of this run got, in bins of log W.

    Attributes:
        log_weight: Centres of the bins, nats; bins without a sequence are left out.
        positive: Mean phi over the bin's sequences with A > 0; None without any.
        negative: Likewise with A < 0.
        n: Sequences in the bin.
    """

    log_weight: FloatArray
    positive: list[float | None]
    negative: list[float | None]
    n: IntArray


@dataclass(frozen=True, slots=True)
class MethodResponse:
    """One correction on one set of responses.

    Attributes:
        label: How a report calls the method.
        parameters: Its hyperparameters.
        level: "token" or "sequence".
        reads: Which ratio phi looks at.
        unit: What `mean`, `ess` and the masses average over: "tokens" or "sequences".
        mean: Mean phi.
        ess: Kish effective sample size of phi as a fraction of the entries.
        kept_fraction: Share of tokens with phi above `kept_above`.
        kept_above: 0 for methods that drop, 0.01 for those that fade.
        positive_mass: Mean phi where A > 0: the share of the positive signal that is left (Z+).
        negative_mass: Mean phi where A < 0 (Z-).
        mass_ratio: Z- / Z+; away from 1 the method shifts the mean of the effective advantage.
        gradient_mass: sum |A| phi / sum |A| over tokens: what is left of the gradient's size; not had without
            advantages.
        max_weight_share: Largest phi / sum of phi.
        empty_tokens: Tokens whose phi is 0 (at most 1e-12).
        empty_sequences: Sequences without a token whose phi is above that.
        sign_basis: "advantage": masses are over the sequences with that sign. "assumed": the run has no
            advantages, so each sequence is counted twice, once with A = 1 and once with A = -1.
        by_length: By length of the response.
        curve: phi against log W; None for token-level methods, whose phi is no function of log W.
        points: What the sequences here got.
    """

    label: str
    parameters: dict[str, Any]
    level: Literal["token", "sequence"]
    reads: str
    unit: Literal["tokens", "sequences"]
    mean: Estimate
    ess: Estimate
    kept_fraction: Estimate
    kept_above: float
    positive_mass: Estimate
    negative_mass: Estimate
    mass_ratio: Estimate
    gradient_mass: Estimate
    max_weight_share: float
    empty_tokens: int
    empty_sequences: int
    sign_basis: Literal["advantage", "assumed"]
    by_length: list[LengthBucket] = field(default_factory=list)
    curve: WeightCurve | None = None
    points: WeightPoints | None = None
