"""Training signals that are no method here: a coefficient that is no multiple of A, or no published default.

Functions on numpy arrays, in nats: CIS (its slope was not published), DRO and Kimi's quadratic penalty, OAPL, and
Jackpot's budgeted rejection, which needs the laws over the vocabulary and not only the sampled token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.logspace import log_mean_exp

FloatArray = npt.NDArray[np.float64]

_LOG_CEILING = 690.0


def confidence_capped_weight(
    train_logprobs: npt.ArrayLike, rollout_logprobs: npt.ArrayLike, slope: float, *, margin: float = 5e-3
) -> FloatArray:
    """CIS: min(k, 1 + slope max(1 - pi, margin)), k = pi / mu.

    Tokens that the trainer is sure of may weigh little more than 1, since their log-ratios are small unless
    something is wrong.

    Source: arXiv 2609.32444; margin 5e-3, slope not published.

    Args:
        train_logprobs: log pi, any shape.
        rollout_logprobs: log mu, the same shape.
        slope: How far above 1 a token of probability 0 may weigh, at least 0.
        margin: Least 1 - pi, at least 0.

    Raises:
        ConfigError: A negative slope or margin.
    """
    if slope < 0 or margin < 0:
        raise ConfigError(f"slope {slope:g} and margin {margin:g} must not be negative")
    train = np.asarray(train_logprobs, dtype=np.float64)
    log_ratio = train - np.asarray(rollout_logprobs, dtype=np.float64)
    ratio = np.exp(np.clip(log_ratio, -_LOG_CEILING, _LOG_CEILING))
    cap = 1.0 + slope * np.maximum(-np.expm1(np.minimum(train, 0.0)), margin)
    return np.asarray(np.minimum(ratio, cap))


def penalised_coefficient(log_ratio: npt.ArrayLike, advantages: npt.ArrayLike, beta: float) -> FloatArray:
    """DRO: A - beta l, the coefficient on grad log pi of A log pi - beta l^2 / 2.

    Source: verl `dro` (`policy_loss.dro_beta`, required); Kimi k1.5, arXiv 2501.12599 equation 3 (ROLL
    pg_variant "kimi15", tau 0.1). Both read l = log pi - log pi_old.

    Args:
        log_ratio: l, nats, any shape.
        advantages: A, a shape that broadcasts with it.
        beta: Above 0.

    Raises:
        ConfigError: beta is not positive.
    """
    if beta <= 0:
        raise ConfigError(f"beta must be positive, not {beta:g}")
    return np.asarray(
        np.asarray(advantages, dtype=np.float64) - beta * np.asarray(log_ratio, dtype=np.float64)
    )


def soft_value(rewards: npt.ArrayLike, beta: float) -> float:
    """OAPL's value of a group: V = beta log mean exp(r / beta).

    Source: arXiv 2602.19362.

    Args:
        rewards: Of the responses to one prompt, [responses].
        beta: Above 0.

    Raises:
        ConfigError: No reward, or beta is not positive.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.size == 0 or beta <= 0:
        raise ConfigError("a value needs at least one reward and a beta above 0")
    return beta * log_mean_exp(values / beta)


def regression_coefficient(
    log_weight: npt.ArrayLike, rewards: npt.ArrayLike, value: npt.ArrayLike, beta: float
) -> FloatArray:
    """OAPL: -2 beta (beta log W - (r - V)), the descent coefficient on grad log pi of a whole response.

    Of the loss (beta log W - (r - V))^2: no importance weight, a regression whose optimum is the tilted policy.

    Source: arXiv 2602.19362.

    Args:
        log_weight: log W = log pi - log mu of responses, nats, [responses].
        rewards: r, [responses].
        value: V of their prompts, see `soft_value`.
        beta: Above 0.

    Raises:
        ConfigError: beta is not positive.
    """
    if beta <= 0:
        raise ConfigError(f"beta must be positive, not {beta:g}")
    target = np.asarray(rewards, dtype=np.float64) - np.asarray(value, dtype=np.float64)
    return np.asarray(-2.0 * beta * (beta * np.asarray(log_weight, dtype=np.float64) - target))


@dataclass(frozen=True, slots=True, eq=False)
class BudgetedRejection:
    """What budgeted rejection does with each token of a vocabulary.

    Attributes:
        accepted: Z = sum of min(mu, pi / lambda): the share of sampled tokens that stays.
        acceptance: min(1, rho / lambda) of each token, [vocabulary].
        weight: min(Z max(lambda, rho), cap) of each token that stays, [vocabulary].
        law: Of the tokens that stay, min(mu, pi / lambda) / Z, [vocabulary].
    """

    accepted: float
    acceptance: FloatArray
    weight: FloatArray
    law: FloatArray


def budgeted_rejection(
    train: npt.ArrayLike, rollout: npt.ArrayLike, budget: float, *, cap: float | None = None
) -> BudgetedRejection:
    """Jackpot's optimal budgeted rejection sampling (equations 3 to 5, algorithm 1).

    Without a cap the expectation of acceptance times weight is Z rho: token importance sampling with another
    variance. Neither lambda nor the cap is published.

    Args:
        train: pi over the vocabulary, probabilities, [vocabulary].
        rollout: mu over the vocabulary, above 0, [vocabulary].
        budget: lambda, above 0.
        cap: Largest weight, or None.

    Raises:
        ConfigError: Shapes differ, a probability of mu is 0, or lambda or the cap is not positive.
    """
    pi, mu = np.asarray(train, dtype=np.float64), np.asarray(rollout, dtype=np.float64)
    if pi.shape != mu.shape or pi.ndim != 1 or bool(np.any(mu <= 0)) or bool(np.any(pi < 0)):
        raise ConfigError("budgeted rejection needs two laws over one vocabulary, the rollout's above 0")
    if budget <= 0 or (cap is not None and cap <= 0):
        raise ConfigError("lambda and the cap must be positive")
    ratio = pi / mu
    stays = np.minimum(mu, pi / budget)
    accepted = float(stays.sum())
    weight = accepted * np.maximum(budget, ratio)
    return BudgetedRejection(
        accepted=accepted,
        acceptance=np.minimum(1.0, ratio / budget),
        weight=weight if cap is None else np.minimum(weight, cap),
        law=stays / accepted,
    )


def smallest_before(log_ratio: npt.ArrayLike) -> FloatArray:
    """MinPRO's ingredient: the smallest token ratio of the strict prefix of each token, 1 for the first.

    Source: arXiv 2601.22718, which puts it in place of the product; how the two combine was not found.

    Args:
        log_ratio: Of one response, nats, [tokens].
    """
    row = np.asarray(log_ratio, dtype=np.float64)
    lowest = np.minimum.accumulate(row)[:-1]
    ratios = np.concatenate([[1.0], np.exp(np.clip(lowest, -_LOG_CEILING, _LOG_CEILING))])
    return np.asarray(ratios[: row.size], dtype=np.float64)
