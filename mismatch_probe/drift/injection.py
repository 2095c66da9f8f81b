"""Training-side log-probabilities of a simulated trainer that drifts as a measured one does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mismatch_probe.drift.clustering import Dependence, fit_dependence
from mismatch_probe.drift.flips import FlipRates
from mismatch_probe.drift.log_odds import CERTAIN, checked_logprobs, log_odds, logprobs_of
from mismatch_probe.drift.marginals import Marginal, fit_marginal
from mismatch_probe.errors import ConfigError
from mismatch_probe.stats.layout import BoolArray, FloatArray, SequenceLayout


@dataclass(frozen=True, slots=True)
class Injected:
    """What an injection made.

    Attributes:
        train_logprobs: float64 [tokens] log pi, nats, never above 0.
        log_ratio: float64 [tokens] log pi - log mu, nats.
        flipped: bool [tokens] tokens drawn from the law of those that a routing flip predicted; None for a profile
            without routes.
        mean_ratio: Mean over tokens of pi / mu. 1 is what a policy ratio has in expectation; the profile reproduces
            the mean that was measured, it does not force 1.
        num_certain: Tokens whose rollout probability was rounded to 1; their drift is as good as 0.
        num_beyond: Tokens less likely than any that the profile was measured on; they drift as its least likely cell.
    """

    train_logprobs: FloatArray
    log_ratio: FloatArray
    flipped: BoolArray | None
    mean_ratio: float
    num_certain: int
    num_beyond: int


@dataclass(frozen=True, slots=True)
class DriftLaw:
    """All that drawing needs.

    Attributes:
        calm: Quantile functions of tokens that no flip predicted; of all tokens where flips are not known.
        flipped: Of the others, or None.
        flips: How often tokens flip, or None.
        dependence: How tokens drift together.
        least_logprob: Least likely token measured, nats.
    """

    calm: Marginal
    flipped: Marginal | None
    flips: FlipRates | None
    dependence: Dependence
    least_logprob: float


def inject_tokens(
    law: DriftLaw, rollout_logprobs: FloatArray, layout: SequenceLayout, *, seed: int
) -> Injected:
    """Draws training-side log-probabilities.

    Args:
        law: As measured.
        rollout_logprobs: float64 [tokens] log mu, below 0, nats (`checked_logprobs`).
        layout: Their sequences and prompts.
        seed: The same seed gives the same numbers.
    """
    generator = np.random.default_rng(seed)
    flipped = None if law.flips is None else law.flips.draw(rollout_logprobs, layout, generator)
    probability = law.dependence.draw(layout, generator)
    displacement = law.calm.displacement(rollout_logprobs, probability)
    if flipped is not None and law.flipped is not None:
        displacement[flipped] = law.flipped.displacement(rollout_logprobs[flipped], probability[flipped])
    # Tokens on which both sides agree exactly are common: they stay exact.
    train = np.where(
        displacement == 0.0, rollout_logprobs, logprobs_of(log_odds(rollout_logprobs) + displacement)
    )
    log_ratio = train - rollout_logprobs
    return Injected(
        train_logprobs=train,
        log_ratio=log_ratio,
        flipped=flipped,
        mean_ratio=float(np.exp(log_ratio).mean()),
        num_certain=int(np.count_nonzero(rollout_logprobs >= CERTAIN)),
        num_beyond=int(np.count_nonzero(rollout_logprobs < law.least_logprob)),
    )


def inject_sequences(
    law: DriftLaw,
    rollout_logprobs: npt.ArrayLike,
    offsets: npt.ArrayLike,
    prompt_ids: npt.ArrayLike | None,
    *,
    seed: int,
) -> Injected:
    """`DriftProfile.inject` on flat tokens."""
    rollout = checked_logprobs(rollout_logprobs, "rollout_logprobs")
    layout = SequenceLayout.from_arrays(offsets, prompt_ids, num_tokens=rollout.size)
    return inject_tokens(law, rollout, layout, seed=seed)


def inject_padded(
    law: DriftLaw,
    rollout_logprobs: npt.ArrayLike,
    mask: npt.NDArray[np.generic],
    prompt_ids: npt.ArrayLike | None,
    *,
    seed: int,
) -> Injected:
    """`DriftProfile.inject` on padded rows."""
    rows = np.asarray(rollout_logprobs, dtype=np.float64)
    counted = mask.astype(np.bool_)
    if rows.ndim != 2 or counted.shape != rows.shape:
        raise ConfigError(f"log-probabilities of shape {rows.shape} and a mask of {counted.shape} do not fit")
    offsets = np.concatenate([[0], np.cumsum(counted.sum(axis=1))])
    drawn = inject_sequences(law, rows[counted], offsets, prompt_ids, seed=seed)
    train, log_ratio = rows.copy(), np.zeros(rows.shape)
    train[counted], log_ratio[counted] = drawn.train_logprobs, drawn.log_ratio
    flipped = None
    if drawn.flipped is not None:
        flipped = np.zeros(rows.shape, dtype=np.bool_)
        flipped[counted] = drawn.flipped
    return replace(drawn, train_logprobs=train, log_ratio=log_ratio, flipped=flipped)


def fit_law(
    train: FloatArray,
    rollout: FloatArray,
    layout: SequenceLayout,
    flipped: BoolArray | None,
    flips: FlipRates | None,
) -> DriftLaw:
    """Measures marginals and dependence.

    Args:
        train: float64 [tokens] log pi, below 0, nats.
        rollout: float64 [tokens] log mu, below 0, nats.
        layout: Sequences and prompts.
        flipped: bool [tokens], or None where not known.
        flips: How often, or None with `flipped`.
    """
    # Ties between measured displacements are spread by draws that are the same every time.
    generator = np.random.default_rng(0)
    displacement = log_odds(train) - log_odds(rollout)
    probability = np.empty(train.size)
    marginals: list[Marginal | None] = []
    for members in (np.ones(train.size, dtype=np.bool_),) if flipped is None else (~flipped, flipped):
        if not members.any():
            marginals.append(None)
            continue
        marginal = fit_marginal(train[members], rollout[members])
        probability[members] = marginal.probability(rollout[members], displacement[members], generator)
        marginals.append(marginal)
    calm, other = (marginals[0] or marginals[-1]), marginals[1] if len(marginals) > 1 else None
    assert calm is not None  # noqa: S101 - there is at least one token
    return DriftLaw(calm, other, flips, fit_dependence(probability, layout), float(rollout.min()))
