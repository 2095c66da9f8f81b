"""The result types of a simulation; they map one to one to `weights.<name>` of result.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mismatch_probe.simulate.bias import BiasVariance
from mismatch_probe.stats.estimate import Estimate

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Axis = Literal["log_weight", "log_ratio"]


@dataclass(frozen=True, slots=True)
class Unavailable:
    """In place of a response that cannot be had.

    Attributes:
        label: How a report calls the method.
        reason: Why.
        available: False.
    """

    label: str
    reason: str
    available: Literal[False] = False


@dataclass(frozen=True, slots=True)
class SignSummary:
    """What the responses of one sign of the advantage get.

    Attributes:
        sequences: How many there are.
        tokens: Their tokens.
        mean: Mean phi over the entries (`MethodResponse.unit`); Z+ or Z-.
        ess: Kish effective sample size of phi as a fraction of the entries.
        kept_fraction: Share of the tokens with phi above `MethodResponse.kept_above`.
        gradient_mass: sum |A| phi / sum |A| over tokens.
        max_weight_share: Largest |phi| over the sum of |phi|.
        empty_tokens: Tokens whose phi is 0 (at most 1e-12 in size).
        empty_sequences: Sequences all of whose tokens are.
    """

    sequences: int
    tokens: int
    mean: Estimate
    ess: Estimate
    kept_fraction: Estimate
    gradient_mass: Estimate
    max_weight_share: float
    empty_tokens: int
    empty_sequences: int


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """The weight of the responses of one range of lengths; every number as in `MethodResponse`.

    Attributes:
        low: Shortest length, tokens.
        high: Longest length, tokens (inclusive).
        n: Sequences.
        mean_log_weight: Mean of log W, nats.
        mean: Mean phi of the bucket's entries.
        ess: Effective size of phi as a fraction.
        kept_fraction: Share of the tokens kept.
        gradient_mass: What is left of the gradient's size.
        positive_mass: Mean phi where A > 0 (Z+).
        negative_mass: Mean phi where A < 0 (Z-).
        mass_ratio: Z- / Z+.
        max_weight_share: Largest |phi| over the sum of |phi|.
        empty_tokens: Tokens without a weight.
        empty_sequences: Sequences without a weight.
    """

    low: int
    high: int
    n: int
    mean_log_weight: float
    mean: Estimate
    ess: Estimate
    kept_fraction: Estimate
    gradient_mass: Estimate
    positive_mass: Estimate
    negative_mass: Estimate
    mass_ratio: Estimate
    max_weight_share: float
    empty_tokens: int
    empty_sequences: int


@dataclass(frozen=True, slots=True)
class WeightCurve:
    """phi as a function of the drift, both signs of the advantage.

    Attributes:
        over: "log_weight" for methods of sequences: log W, spread evenly over the tokens. "log_ratio" for methods
            of tokens: the log-ratio of the token itself.
        grid: Where phi was worked out, nats, float64 [points].
        positive: phi for A > 0.
        negative: phi for A < 0.
        length: Tokens of the response that the curve was drawn for (over "log_weight"), or None; it matters to
            length-normalised methods only.
        probability: Rollout probability of the token that the curve was drawn for (over "log_ratio"), or None;
            it matters to methods that read probabilities only.
    """

    over: Axis
    grid: FloatArray
    positive: FloatArray
    negative: FloatArray
    length: int | None
    probability: float | None


@dataclass(frozen=True, slots=True)
class WeightPoints:
    """What the sequences or the tokens of this run got, in bins of the drift.

    Attributes:
        over: As in `WeightCurve`.
        edges: Edges of the bins, nats, float64 [bins + 1]; what lies beyond counts to the outermost bins.
        positive: Mean phi of the bin's entries with A > 0; None without any.
        negative: Likewise with A < 0.
        n: Entries in the bin; where both signs are assumed, each entry once.
    """

    over: Axis
    edges: FloatArray
    positive: list[float | None]
    negative: list[float | None]
    n: IntArray


@dataclass(frozen=True, slots=True)
class MethodResponse:
    """One correction on one set of responses.

    Attributes:
        label: How a report calls the method.
        family: What kind of correction it is, see `mismatch_probe.simulate.families`.
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
        max_weight_share: Largest |phi| over the sum of |phi|.
        empty_tokens: Tokens whose phi is 0 (at most 1e-12 in size).
        empty_sequences: Sequences all of whose tokens are.
        sign_basis: "advantage": masses are over the sequences with that sign. "assumed": the run has no
            advantages, so each sequence is counted twice, once with A = 1 and once with A = -1.
        by_sign: "positive" and "negative".
        by_length: By length of the response.
        against_sequence_is: Bias and variance against full sequence importance sampling; None where not asked for.
        curve: phi against the drift; None where phi is no function of one number, or no curve was asked for.
        points: What the entries here got.
    """

    label: str
    family: str
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
    by_sign: dict[str, SignSummary] = field(default_factory=dict)
    by_length: list[LengthBucket] = field(default_factory=list)
    against_sequence_is: BiasVariance | None = None
    curve: WeightCurve | None = None
    points: WeightPoints | None = None
