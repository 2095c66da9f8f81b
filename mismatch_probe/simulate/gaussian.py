"""VESPO on a log-normal population: the reference line beside what was measured.

Where log W ~ N(-s/2, s), the weights have mean 1 and s is twice the KL of a sequence. Real weights have
heavier tails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.weights.kernel import kernel, kernel_constants

FloatArray = npt.NDArray[np.float64]

_WIDTH = 12.0  # standard deviations on either side; the rest weighs less than 1e-32
_POINTS = 8001


@dataclass(frozen=True, slots=True)
class GaussianResponse:
    """What a kernel keeps of a log-normal population.

    Attributes:
        variance: s, nats^2.
        mass: Z = E[phi], the share of the signal that is left.
        mean_weight: E_Q[W] = E[phi W] / Z.
        second_moment: E[phi^2].
        ess: Z^2 / E[phi^2], the effective sample size of phi as a fraction.
        ess_weight: exp(-s), that of W itself.
        bound: Z K E_Q[W], which E[phi^2] cannot pass (Proposition 3.1); None for c1 < 1, where there is no
            bound.
    """

    variance: float
    mass: float
    mean_weight: float
    second_moment: float
    ess: float
    ess_weight: float
    bound: float | None


def gaussian_response(variance: float, c1: float, c2: float) -> GaussianResponse:
    """Integrates a kernel over log W ~ N(-s/2, s).

    The trapezoid rule on a wide even grid: for an analytic integrand that vanishes at both ends its error
    falls exponentially with the number of points.

    Args:
        variance: s >= 0, nats^2.
        c1: Power of the kernel.
        c2: Rate of the kernel.

    Raises:
        ConfigError: The variance is negative, or the pair is no kernel.
    """
    if variance < 0:
        raise ConfigError(f"a variance cannot be {variance:g}")
    constant = kernel_constants(c1, c2).variance_constant
    if variance == 0:
        return GaussianResponse(0.0, 1.0, 1.0, 1.0, 1.0, 1.0, constant)
    sigma = float(np.sqrt(variance))
    # W phi peaks further right than phi and W^2 further still: the window covers the densities tilted by W^0 .. W^(2 c1).
    low = -variance / 2 - _WIDTH * sigma
    high = -variance / 2 + (2.0 * c1 + 1.0) * variance + _WIDTH * sigma
    x = np.linspace(low, high, _POINTS)
    step = float(x[1] - x[0])
    density = np.exp(-np.square(x + variance / 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    phi = kernel(x, c1, c2)
    weighted = phi * density
    mass = float(weighted.sum()) * step
    # W times phi in one exponential: W alone overflows where phi has long vanished.
    mean_weight = float((kernel_times_weight(x, c1, c2) * density).sum()) * step / mass
    second = float((phi * weighted).sum()) * step
    return GaussianResponse(
        variance=variance,
        mass=mass,
        mean_weight=mean_weight,
        second_moment=second,
        ess=mass * mass / second,
        ess_weight=float(np.exp(-variance)),
        bound=None if constant is None else mass * constant * mean_weight,
    )


def kernel_times_weight(log_weight: npt.ArrayLike, c1: float, c2: float) -> FloatArray:
    """W phi(W): the kernel with one more power of W."""
    return kernel(log_weight, c1 + 1.0, c2)
