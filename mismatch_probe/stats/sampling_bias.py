"""What the mean ratio becomes when the logged law is not the law that was sampled from.

A worked example over a small vocabulary, exact: it shows which mix-ups the martingale test sees. Truncation
against an untruncated training law lowers the mean ratio to the training mass of the kept tokens; raw
log-probabilities with truncated sampling leave it near 1 although the support is cut; raw ones at a
temperature other than 1 move it in second order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.layout import FloatArray
from mismatch_probe.stats.logspace import log_sum_exp


@dataclass(frozen=True, slots=True)
class SamplingBias:
    """E[training / rollout probability] under the law that tokens are really drawn from.

    Attributes:
        raw_vs_train: Rollout logs its law at temperature 1 without truncation, training at temperature 1.
        processed_vs_train: Rollout logs the sampled law, training at temperature 1 without truncation.
        processed_vs_train_temperature: Training applies the temperature but not the truncation.
        processed_vs_train_replayed: Training applies both: always 1.
        train_mass_in_support: Training mass of the kept tokens at the sampling temperature.
        kl: KL(sampled law || training law with both applied), nats.
    """

    raw_vs_train: float
    processed_vs_train: float
    processed_vs_train_temperature: float
    processed_vs_train_replayed: float
    train_mass_in_support: float
    kl: float


def sampling_bias(
    logits_rollout: npt.ArrayLike,
    logits_train: npt.ArrayLike,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> SamplingBias:
    """Computes the mean ratio of one next-token law for each way of logging it.

    Args:
        logits_rollout: [vocabulary].
        logits_train: [vocabulary].
        temperature: Of sampling, above 0.
        top_k: Tokens with the largest rollout logits that sampling keeps; None keeps all.

    Raises:
        ConfigError: The shapes differ, or the temperature or top_k is out of range.
    """
    rollout, train = (np.asarray(logits, dtype=np.float64) for logits in (logits_rollout, logits_train))
    size = rollout.size if top_k is None else top_k
    if (
        rollout.shape != train.shape
        or rollout.ndim != 1
        or not temperature > 0
        or not 1 <= size <= rollout.size
    ):
        raise ConfigError(
            "sampling_bias needs two logit vectors of one length, temperature > 0 and top_k >= 1"
        )
    kept = np.argsort(-rollout, kind="stable")[:size]
    sampled = _log_softmax(rollout[kept] / temperature)
    mu = np.exp(sampled)
    raw, train_one, train_tempered = (_log_softmax(z)[kept] for z in (rollout, train, train / temperature))
    replayed = _log_softmax(train[kept] / temperature)
    return SamplingBias(
        raw_vs_train=float(mu @ np.exp(train_one - raw)),
        processed_vs_train=float(np.exp(train_one).sum()),
        processed_vs_train_temperature=float(np.exp(train_tempered).sum()),
        processed_vs_train_replayed=float(np.exp(replayed).sum()),
        train_mass_in_support=float(np.exp(train_tempered).sum()),
        kl=float(mu @ (sampled - replayed)),
    )


def _log_softmax(logits: FloatArray) -> FloatArray:
    return logits - log_sum_exp(logits)
