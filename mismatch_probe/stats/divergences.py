"""Divergences of the two-outcome law "this token or any other", from the sampled token on both sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.layout import FloatArray


@dataclass(frozen=True, slots=True)
class BinaryDivergences:
    """Elementwise, float64 [tokens]; p = training probability, q = rollout probability of the sampled token.

    Attributes:
        tv: Total variation |p - q|.
        kl_rollout_train: q log(q/p) + (1-q) log((1-q)/(1-p)), nats.
        kl_train_rollout: p log(p/q) + (1-p) log((1-p)/(1-q)), nats.
        logit_displacement: logit p - logit q, nats. Infinite or NaN where a side is exactly 1.
    """

    tv: FloatArray
    kl_rollout_train: FloatArray
    kl_train_rollout: FloatArray
    logit_displacement: FloatArray


def binary_divergences(train_logprobs: npt.ArrayLike, rollout_logprobs: npt.ArrayLike) -> BinaryDivergences:
    """Divergences that need only the sampled token's log-probability on both sides.

    Safe at p -> 1 and p -> 0: 1 - p comes from expm1, never from a subtraction of near-equal numbers, and a
    term with weight 0 is 0.

    Args:
        train_logprobs: [tokens] log p, nats, at most 0 (tiny positive values from rounding are read as 0).
        rollout_logprobs: [tokens] log q, nats.

    Raises:
        ConfigError: The shapes differ, or a log-probability is above 1e-3.
    """
    log_p, log_q = (
        np.atleast_1d(np.asarray(a, dtype=np.float64)) for a in (train_logprobs, rollout_logprobs)
    )
    if log_p.shape != log_q.shape:
        raise ConfigError(
            f"train and rollout log-probabilities differ in shape: {log_p.shape} and {log_q.shape}"
        )
    if np.any(log_p > 1e-3) or np.any(log_q > 1e-3):
        raise ConfigError("a log-probability is above 0", hint="the check MP103 shows where")
    log_p, log_q = np.minimum(log_p, 0.0), np.minimum(log_q, 0.0)
    p, q = np.exp(log_p), np.exp(log_q)
    rest_p, rest_q = log_complement(log_p), log_complement(log_q)
    # |p - q| through the larger side keeps the digits when both are tiny or nearly equal.
    tv = np.exp(np.maximum(log_p, log_q)) * -np.expm1(-np.abs(log_p - log_q))
    with np.errstate(invalid="ignore"):
        displacement = (log_p - log_q) - (rest_p - rest_q)
    return BinaryDivergences(
        tv=np.where(log_p == log_q, 0.0, tv),
        kl_rollout_train=_binary_kl(q, log_q - log_p, rest_q, rest_p),
        kl_train_rollout=_binary_kl(p, log_p - log_q, rest_p, rest_q),
        logit_displacement=np.where(log_p == log_q, 0.0, displacement),
    )


def log_complement(log_p: FloatArray) -> FloatArray:
    """log(1 - exp(log_p)) for log_p <= 0, accurate at both ends; minus infinity at 0."""
    with np.errstate(divide="ignore"):
        near_one = np.log(-np.expm1(log_p))
        near_zero = np.log1p(-np.exp(log_p))
    return np.where(log_p > -np.log(2.0), near_one, near_zero)


def _binary_kl(
    weight: FloatArray, log_quotient: FloatArray, rest: FloatArray, other_rest: FloatArray
) -> FloatArray:
    with np.errstate(invalid="ignore", over="ignore"):
        tail = np.where(np.isneginf(rest), 0.0, np.exp(rest) * (rest - other_rest))
        head = np.where(weight == 0.0, 0.0, weight * log_quotient)
        both = np.where(log_quotient == 0.0, 0.0, head + tail)
    # Rounding of two cancelling terms may leave a value just below 0.
    clipped: FloatArray = np.maximum(both, 0.0)
    return clipped
