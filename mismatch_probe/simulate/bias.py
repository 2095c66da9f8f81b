"""Bias and variance of a correction against full sequence importance sampling, which is unbiased."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import MismatchProbeError
from mismatch_probe.simulate.intervals import PromptSums, quotient
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.sums import Ground, ground_of, sum_weights
from mismatch_probe.stats.estimate import Estimate
from mismatch_probe.stats.pareto import ParetoK, pareto_k

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod

FloatArray = npt.NDArray[np.float64]

_LOG_LIMIT = 300.0


@dataclass(frozen=True, slots=True)
class BiasVariance:
    """How far a correction is from the truth, and what it saves in noise.

    The yardstick is the mean of W A: sequence importance sampling of the advantage, unbiased whatever the
    drift. A correction puts w A in its place, w being its mean phi over a response's tokens.

    Attributes:
        bias: Mean of (w - W) A.
        variance_ratio: Var(w A) / Var(W A); below 1 the correction is less noisy.
        break_even: Sequences in a batch above which sequence importance sampling has the smaller mean squared
            error; None where the correction is noisier, or not measurably biased.
        k_hat: Pareto shape of W; where it is not to be trusted nothing else here is given.
    """

    bias: Estimate
    variance_ratio: Estimate
    break_even: float | None
    k_hat: ParetoK


@dataclass(frozen=True, slots=True)
class Tail:
    """Whether means of W can be relied on, which is the same question for every correction.

    Attributes:
        k_hat: Pareto shape of W.
        reason: Why not, or None.
    """

    k_hat: ParetoK
    reason: str | None


def bias_variance(
    method: WeightMethod, responses: Responses, *, resamples: int = 1000, seed: int = 0
) -> BiasVariance:
    """Compares a correction with sequence importance sampling on the same responses.

    Args:
        method: The correction.
        responses: Responses with advantages.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Raises:
        MismatchProbeError: The method cannot be had on these responses.
    """
    ground = ground_of(responses)
    sums = sum_weights({method.name: method}, responses, ground)[method.name]
    if isinstance(sums, MismatchProbeError):
        raise sums
    own = sums.weight / ground.lengths
    return against_sequence_is(own, ground, tail_of(ground), resamples=resamples, seed=seed)


def tail_of(ground: Ground) -> Tail:
    """The tail of W, and whether it and the run allow bias and variance to be stated."""
    unique = len(ground.log_weight) // (2 if ground.assumed else 1)
    k_hat = pareto_k(ground.log_weight[:unique])
    return Tail(k_hat, _refusal(ground, k_hat))


def against_sequence_is(
    own: FloatArray, ground: Ground, tail: Tail, *, resamples: int, seed: int
) -> BiasVariance:
    """The same from sums that were made before.

    Args:
        own: Mean phi over the tokens of each sequence, float64 [sequences].
        ground: The sequences.
        tail: `tail_of(ground)`.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.
    """
    n = len(own) // (2 if ground.assumed else 1)
    if tail.reason is not None:
        missing = Estimate(None, None, None, n, tail.reason)
        return BiasVariance(missing, missing, None, tail.k_hat)
    full = np.exp(ground.log_weight) * ground.advantages
    own = own * ground.advantages

    def by_prompt(values: FloatArray) -> FloatArray:
        return np.bincount(ground.clusters, values, ground.prompts).astype(np.float64)

    sums = PromptSums(
        {
            "n": by_prompt(np.ones(len(own))),
            "difference": by_prompt(own - full),
            "own": by_prompt(own),
            "own_squares": by_prompt(own**2),
            "full": by_prompt(full),
            "full_squares": by_prompt(full**2),
        },
        resamples,
        seed,
    )
    bias = sums.estimate(("difference", "n"), quotient, n=n, missing="no sequence")
    ratio = sums.estimate(
        ("own", "own_squares", "full", "full_squares", "n"), _variance_ratio, n=n, missing="W A does not vary"
    )
    return BiasVariance(bias, ratio, _break_even(bias, own, full), tail.k_hat)


def _refusal(ground: Ground, k_hat: ParetoK) -> str | None:
    if ground.assumed:
        return "the run has no advantages"
    if k_hat.state == "exact":
        return "all weights are 1: there is nothing to correct and nothing to be biased about"
    if k_hat.value is None or k_hat.good_k is None:
        return f"no k-hat of W: {k_hat.reason}"
    if k_hat.value > k_hat.good_k:
        needed = (
            "no number of sequences would do" if k_hat.num_needed is None else f"{k_hat.num_needed} might do"
        )
        return (
            f"k-hat of W is {k_hat.value:.2f}, above {k_hat.good_k:.2f}: with {k_hat.n} sequences the mean of W A "
            f"cannot be relied on ({needed})"
        )
    if float(np.abs(ground.log_weight).max()) > _LOG_LIMIT:
        return "some W is so far from 1 that its square leaves the range of float64"
    return None


def _variance_ratio(
    own: FloatArray, own_squares: FloatArray, full: FloatArray, full_squares: FloatArray, n: FloatArray
) -> FloatArray:
    top = quotient(own_squares, n) - np.square(quotient(own, n))
    bottom = quotient(full_squares, n) - np.square(quotient(full, n))
    return quotient(top, bottom)


def _break_even(bias: Estimate, own: FloatArray, full: FloatArray) -> float | None:
    """The n at which bias^2 + Var(w A) / n = Var(W A) / n."""
    if bias.value is None or bias.ci_low is None or bias.ci_high is None:
        return None
    saved = float(full.var(ddof=1) - own.var(ddof=1))
    # Rounding alone makes a correction that equals W "save" some 1e-16 of the variance.
    if saved <= 1e-9 * float(full.var(ddof=1)) or bias.ci_low <= 0 <= bias.ci_high:
        return None
    return saved / bias.value**2
