"""Per-token divergence estimators from log-ratios of sampled tokens.

Tokens are sampled from the rollout policy mu; `log_ratio` l = log pi - log mu in nats. With k1 = -l, k2 = l^2
/ 2 and k3 = exp(l) - 1 - l (Schulman, "Approximating KL divergence", 2020), k1 and k3 estimate KL(mu || pi)
without bias whenever E_mu[exp(l)] = 1; sample by sample k3 - k1 = exp(l) - 1, so that a disagreement of the
two is the martingale statistic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.stats.layout import FloatArray, finite_array
from mismatch_probe.stats.logspace import exp_or_none, log_mean_exp

CLAMP = 20.0
"""Bound on |log_ratio| that verl, SkyRL and ms-swift put before exponentials."""

# l^2 (1/2! + l/3! + ... + l^5/7!), from the last term on: the next is below 1e-15 of the sum where |l| < 0.02.
_NEAR = 0.02
_SERIES = tuple(1 / math.factorial(n) for n in range(7, 1, -1))
_BLOCK = 16384


def token_k1(log_ratio: npt.ArrayLike) -> FloatArray:
    """k1 = -l, elementwise, nats."""
    return -np.asarray(log_ratio, dtype=np.float64)


def token_k2(log_ratio: npt.ArrayLike) -> FloatArray:
    """k2 = l^2 / 2, elementwise, nats^2."""
    return 0.5 * np.square(np.asarray(log_ratio, dtype=np.float64))


def token_k3(log_ratio: npt.ArrayLike) -> FloatArray:
    """k3 = exp(l) - 1 - l, elementwise, nats.

    Computed as expm1(l) - l, and below |l| = 0.02 as a series, since the plain form loses every digit there.
    Infinite above l = 709.
    """
    values = np.asarray(log_ratio, dtype=np.float64)
    flat = values.reshape(-1)
    result = np.empty_like(flat)
    with np.errstate(over="ignore", invalid="ignore"):
        # Blocks stay in the cache; on whole arrays most of the time would go to memory.
        for begin in range(0, flat.size, _BLOCK):
            part, factor = flat[begin : begin + _BLOCK], result[begin : begin + _BLOCK]
            np.multiply(part, _SERIES[0], out=factor)
            for coefficient in _SERIES[1:-1]:
                factor += coefficient
                factor *= part
            factor += _SERIES[-1]
            factor *= part
            factor *= part
            far = ~(np.abs(part) < _NEAR)
            if far.any():
                large = part[far]
                factor[far] = np.expm1(large) - large
    return result.reshape(values.shape)


def token_k3_reverse(log_ratio: npt.ArrayLike) -> FloatArray:
    """exp(-l) - 1 + l, elementwise: the form of AReaL's `kl_k3` and NeMo-RL's `policy_kl_error`."""
    return token_k3(-np.asarray(log_ratio, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class KLEstimates:
    """Means over tokens, float64.

    Attributes:
        k1: Mean of -l, nats.
        k2: Mean of l^2 / 2.
        k3: Mean of exp(l) - 1 - l; infinite where exp(l) leaves float64.
        k3_reverse: Mean of exp(-l) - 1 + l.
        mean_ratio: Mean of exp(l); 1 when pi and mu are laws over the same support (the martingale).
        mean_abs: Mean of |l|.
        k3_clamped: k3 with l clamped to +-20 first.
        num_clamped: Tokens with |l| > 20.
        n: Tokens.
    """

    k1: float
    k2: float
    k3: float
    k3_reverse: float
    mean_ratio: float
    mean_abs: float
    k3_clamped: float
    num_clamped: int
    n: int


def kl_estimates(log_ratio: npt.ArrayLike) -> KLEstimates:
    """All one-sample divergence estimators, averaged over tokens.

    Args:
        log_ratio: [tokens] or one number, nats.

    Raises:
        InconclusiveError: No tokens, or tokens that are not finite.
    """
    values = finite_array(log_ratio, "log_ratio")
    num_clamped = int(np.count_nonzero(np.abs(values) > CLAMP))
    with np.errstate(over="ignore"):
        k3 = float(token_k3(values).mean())
        return KLEstimates(
            k1=float(-values.mean()),
            k2=float(token_k2(values).mean()),
            k3=k3,
            k3_reverse=float(token_k3_reverse(values).mean()),
            mean_ratio=float(np.exp(values).mean()),
            mean_abs=float(np.abs(values).mean()),
            k3_clamped=float(token_k3(np.clip(values, -CLAMP, CLAMP)).mean()) if num_clamped else k3,
            num_clamped=num_clamped,
            n=int(values.size),
        )


@dataclass(frozen=True, slots=True)
class ChiSquare:
    """chi^2(pi || mu) and its logarithmic kin, of tokens or of sequences.

    Attributes:
        value: E[W^2] - 1 as a plug-in mean (may be below 0 in a sample), or None where it leaves float64.
        renyi2: log E[W^2], the order-2 Renyi divergence in nats; always finite.
        self_normalised: n sum W^2 / (sum W)^2 - 1, at most n - 1.
        log_mean: log E[W].
        clamped: `value` with the log-weights clamped to +-20 first, as verl does.
        num_clamped: How many entries that clamp moves.
        n: Entries.
    """

    value: float | None
    renyi2: float
    self_normalised: float
    log_mean: float
    clamped: float
    num_clamped: int
    n: int


def chi2(log_weight: npt.ArrayLike) -> ChiSquare:
    """chi^2(pi || mu) = E_mu[W^2] - 1.

    Args:
        log_weight: [n] log-ratios of tokens (token chi^2) or log-weights of sequences (sequence chi^2), nats.

    Raises:
        InconclusiveError: No entries, or entries that are not finite.
    """
    values = finite_array(log_weight, "log_weight")
    log_square, log_mean = log_mean_exp(2.0 * values), log_mean_exp(values)
    square = exp_or_none(log_square)
    return ChiSquare(
        # expm1 of the mean of expm1 keeps the digits when all weights are close to 1.
        value=None if square is None else _mean_expm1(2.0 * values),
        renyi2=log_square,
        self_normalised=_self_normalised(values),
        log_mean=log_mean,
        clamped=_mean_expm1(2.0 * np.clip(values, -CLAMP, CLAMP)),
        num_clamped=int(np.count_nonzero(np.abs(values) > CLAMP)),
        n=int(values.size),
    )


def _mean_expm1(values: FloatArray) -> float:
    with np.errstate(over="ignore"):
        direct = float(np.expm1(values).mean())
    return direct if math.isfinite(direct) else math.expm1(log_mean_exp(values))


def _self_normalised(values: FloatArray) -> float:
    # The squared coefficient of variation of W: no cancellation when the weights are nearly equal.
    weight = np.exp(values - values.max())
    mean = float(weight.mean())
    return float(np.square(weight - mean).mean()) / mean**2
