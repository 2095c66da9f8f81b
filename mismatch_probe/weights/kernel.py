"""VESPO's kernel phi(W) = W^c1 exp(c2 (1 - W)) as a function of one variable: surrogate, peak, bounds.

Source: VESPO, arXiv 2602.10693 v3, equations 17 and 41, Propositions 3.1 and C.1; c1 is alpha, c2 is lambda.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError

FloatArray = npt.NDArray[np.float64]

# exp above this is so large that phi has underflowed to 0 for any c2 worth having; it keeps W finite.
_LOG_W_CEILING = 690.0


def kernel(log_weight: npt.ArrayLike, c1: float, c2: float) -> FloatArray:
    """phi(W) = exp(c1 log W - c2 (W - 1)), with phi(1) = 1.

    Args:
        log_weight: log W in nats, any shape.
        c1: Power, at least 0.
        c2: Rate of the exponential, above 0.

    Returns:
        phi, float64, the shape of `log_weight`; saturates at exp(690), which only rates in the hundreds reach.
    """
    log_w = np.asarray(log_weight, dtype=np.float64)
    # An exponent below -745 is 0 in float64; clipping it there keeps numpy from warning of underflow.
    exponent = c1 * log_w - c2 * np.expm1(np.minimum(log_w, _LOG_W_CEILING))
    return np.asarray(np.where(exponent > -745.0, np.exp(np.clip(exponent, -745.0, _LOG_W_CEILING)), 0.0))


@dataclass(frozen=True, slots=True)
class KernelConstants:
    """What a pair (c1, c2) implies.

    Attributes:
        peak_weight: W at which phi is largest, c1 / c2.
        peak: phi there, (c1 / c2)^c1 exp(c2 - c1).
        variance_constant: K = sup phi(W) / W, so that E[phi^2] <= Z K E_Q[W] (Proposition 3.1); None for c1 <
            1, where the supremum is infinite and the proposition gives no bound.
        variance_weight: W at which phi(W) / W is largest, (c1 - 1) / c2; None for c1 < 1.
    """

    peak_weight: float
    peak: float
    variance_constant: float | None
    variance_weight: float | None


def kernel_constants(c1: float, c2: float) -> KernelConstants:
    """The constants of a pair.

    Raises:
        ConfigError: c1 is negative or c2 is not positive.
    """
    if c1 < 0 or c2 <= 0:
        raise ConfigError(f"the kernel needs c1 >= 0 and c2 > 0, not {c1:g} and {c2:g}")
    peak_weight = c1 / c2
    peak = _saturating_exp(c1 * np.log(peak_weight) + c2 - c1 if c1 > 0 else c2)
    if c1 < 1:
        return KernelConstants(peak_weight, peak, None, None)
    steep = (c1 - 1.0) / c2
    power = (c1 - 1.0) * np.log(steep) if c1 > 1 else 0.0
    return KernelConstants(peak_weight, peak, _saturating_exp(power + c2 - c1 + 1.0), steep)


def _saturating_exp(exponent: float) -> float:
    return float(np.exp(min(exponent, _LOG_W_CEILING)))


def surrogate(weight: npt.ArrayLike, c1: float, c2: float) -> FloatArray:
    """f(W) with f(0) = 0 and W f'(W) = phi(W): f = e^c2 c2^-c1 gamma(c1, c2 W), gamma lower incomplete.

    Args:
        weight: W >= 0, any shape.
        c1: Power, above 0.
        c2: Rate, above 0.

    Raises:
        ConfigError: c1 or c2 is not positive, or a weight is negative.
    """
    from scipy.special import gammainc, gammaln

    values = np.asarray(weight, dtype=np.float64)
    if c1 <= 0 or c2 <= 0 or bool(np.any(values < 0)):
        raise ConfigError("the surrogate needs c1 > 0, c2 > 0 and weights that are not negative")
    scale = np.exp(c2 - c1 * np.log(c2) + gammaln(c1))
    return np.asarray(scale * gammainc(c1, c2 * values), dtype=np.float64)
