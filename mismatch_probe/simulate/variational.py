"""VESPO's variational problem on measured weights: the rate that a variance budget asks for.

Q is proportional to mu W^alpha exp(-lambda W); lambda is the smallest rate with E_Q[W] <= C (VESPO, arXiv
2602.10693 v3, equations 11 to 17). E_Q[W] falls with lambda, its derivative being -Var_Q(W), so the problem
has one dimension and one root.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.weights.kernel import kernel, kernel_constants

FloatArray = npt.NDArray[np.float64]

_LOG_CEILING = 690.0
_MAX_RATE = 1e12


@dataclass(frozen=True, slots=True)
class Tilt:
    """What a kernel does with measured weights.

    Attributes:
        alpha: c1, the power.
        rate: c2 = lambda.
        mass: Z = mean of phi, with phi(1) = 1: the share of the signal that is left.
        mean_weight: E_Q[W].
        ess: Kish effective sample size of phi as a fraction.
        peak_weight: W at which phi is largest, c1 / c2; None at rate 0, where phi has no peak.
        variance_constant: K of Proposition 3.1, sup phi(W) / W; None for c1 < 1 and at rate 0, where it is
            infinite.
        second_moment: Mean of phi^2.
        bound: Z K E_Q[W], which the second moment cannot pass; None without K.
    """

    alpha: float
    rate: float
    mass: float
    mean_weight: float
    ess: float
    peak_weight: float | None
    variance_constant: float | None
    second_moment: float
    bound: float | None


def tilted_mean(
    log_weight: npt.ArrayLike, alpha: float, rate: float, counts: npt.ArrayLike | None = None
) -> float:
    """E_Q[W] = sum W^(alpha + 1) e^(-rate W) / sum W^alpha e^(-rate W).

    Args:
        log_weight: log W, nats, [sequences].
        alpha: Power, at least 0.
        rate: At least 0.
        counts: How often each sequence counts, [sequences]; None counts each once.
    """
    log_w = np.minimum(np.asarray(log_weight, dtype=np.float64), _LOG_CEILING)
    weight = np.exp(np.maximum(log_w, -745.0))
    share = _log_share(log_w, weight, alpha, rate, counts)
    return float((share * weight).sum())


def solve_rate(
    log_weight: npt.ArrayLike, alpha: float, budget: float, counts: npt.ArrayLike | None = None
) -> float:
    """The smallest rate with E_Q[W] <= budget; 0 where the power alone keeps it.

    Args:
        log_weight: log W, nats, [sequences].
        alpha: Power, at least 0.
        budget: C, above 0.
        counts: How often each sequence counts, [sequences]; None counts each once.

    Raises:
        ConfigError: alpha is negative or the budget is not positive.
        InconclusiveError: No sequence, or none whose weight is below the budget: no rate can reach it.
    """
    from scipy.optimize import brentq

    if alpha < 0 or budget <= 0:
        raise ConfigError(f"alpha = {alpha:g} must be at least 0 and the budget {budget:g} above 0")
    log_w = np.asarray(log_weight, dtype=np.float64)
    if counts is not None:
        log_w, counts = log_w[np.asarray(counts) > 0], np.asarray(counts)[np.asarray(counts) > 0]
    if len(log_w) == 0:
        raise InconclusiveError("no sequence to fit a rate to")
    if tilted_mean(log_w, alpha, 0.0, counts) <= budget:
        return 0.0
    smallest = float(np.exp(max(log_w.min(), -745.0)))
    if smallest >= budget:
        raise InconclusiveError(
            f"every weight is at least {smallest:.4g}: no rate brings their mean to {budget:g}",
            hint="raise the budget",
        )

    def excess(rate: float) -> float:
        return tilted_mean(log_w, alpha, rate, counts) - budget

    high = 1.0
    while excess(high) > 0:
        high *= 2.0
        if high > _MAX_RATE:
            raise InconclusiveError(
                f"no rate up to {_MAX_RATE:g} brings the mean weight to {budget:g}", hint="raise the budget"
            )
    return float(brentq(excess, 0.0, high, xtol=1e-12, rtol=1e-12))


def tilt(log_weight: npt.ArrayLike, alpha: float, rate: float) -> Tilt:
    """Everything that a kernel does with measured weights.

    Args:
        log_weight: log W, nats, [sequences].
        alpha: c1, at least 0.
        rate: c2, at least 0.

    Raises:
        InconclusiveError: No sequence.
    """
    log_w = np.asarray(log_weight, dtype=np.float64)
    if len(log_w) == 0:
        raise InconclusiveError("no sequence to weigh")
    phi = kernel(log_w, alpha, rate)
    second = float(np.square(phi).mean())
    mass = float(phi.mean())
    mean_weight = tilted_mean(log_w, alpha, rate)
    constants = kernel_constants(alpha, rate) if rate > 0 else None
    largest = constants.variance_constant if constants is not None else None
    return Tilt(
        alpha=alpha,
        rate=rate,
        mass=mass,
        mean_weight=mean_weight,
        ess=mass * mass / second if second > 0 else 0.0,
        peak_weight=None if constants is None else constants.peak_weight,
        variance_constant=largest,
        second_moment=second,
        bound=None if largest is None else mass * largest * mean_weight,
    )


def _log_share(
    log_w: FloatArray, weight: FloatArray, alpha: float, rate: float, counts: npt.ArrayLike | None
) -> FloatArray:
    exponent = alpha * log_w - rate * weight
    share = np.exp(np.maximum(exponent - exponent.max(), -745.0))
    if counts is not None:
        share = share * np.asarray(counts, dtype=np.float64)
    return np.asarray(share / share.sum())
