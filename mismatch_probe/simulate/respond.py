"""Runs corrections over measured log-probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.simulate.buckets import length_buckets, weight_points
from mismatch_probe.simulate.curve import weight_curve
from mismatch_probe.simulate.intervals import PromptSums, kish, quotient, ratio_of_quotients
from mismatch_probe.simulate.response import MethodResponse
from mismatch_probe.simulate.responses import Responses

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

DEFAULT_METHODS = ("vespo", "token_tis", "seq_tis", "gspo")
EMPTY = 1e-12


def simulate_methods(
    train_logprobs: npt.ArrayLike,
    rollout_logprobs: npt.ArrayLike,
    offsets: npt.ArrayLike,
    clusters: npt.ArrayLike,
    advantages: npt.ArrayLike | None,
    *,
    methods: Sequence[str | WeightMethod] = DEFAULT_METHODS,
    old_logprobs: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, MethodResponse]:
    """What each correction would do with these responses.

    Args:
        train_logprobs: log pi, [tokens], nats.
        rollout_logprobs: log mu, [tokens], nats.
        offsets: [sequences + 1].
        clusters: Prompt of each sequence, [sequences]; what intervals resample.
        advantages: A per sequence, or None; then both signs are tried on every sequence, see
            `MethodResponse.sign_basis`.
        methods: Names (with default hyperparameters) or methods.
        old_logprobs: log pi_old, [tokens], or None: the trainer has just the rollout's weights.
        mask: [tokens], true where a token counts; None counts all.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        By name, in the order asked for.

    Raises:
        ConfigError: Shapes do not line up, or an unknown method.
        InconclusiveError: No sequence with a token.
    """
    from mismatch_probe.weights import get_method

    responses = Responses.of(
        train_logprobs, rollout_logprobs, offsets, clusters, advantages, old_logprobs=old_logprobs, mask=mask
    )
    chosen = [get_method(method) if isinstance(method, str) else method for method in methods]
    return {method.name: respond(method, responses, resamples=resamples, seed=seed) for method in chosen}


def respond(
    method: WeightMethod,
    responses: Responses,
    *,
    resamples: int = 1000,
    seed: int = 0,
    with_curve: bool = True,
) -> MethodResponse:
    """What one correction would do with checked responses; see `simulate_methods`.

    Args:
        method: The correction.
        responses: The responses.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.
        with_curve: Whether to draw phi against log W.
    """
    phi = responses.coefficients(method)
    lengths = responses.lengths()
    counted = lengths > 0
    per_sequence = quotient(responses.sequence_sum(phi), lengths)
    segment = responses.segment()
    if method.level == "sequence":
        entry, sequence = per_sequence[counted], np.flatnonzero(counted)
    else:
        entry, sequence = phi[responses.mask], segment[responses.mask]
    sums = _prompt_sums(method, responses, phi, entry, sequence, resamples=resamples, seed=seed)
    positive, negative = (responses.advantages[sequence] > 0), (responses.advantages[sequence] < 0)
    tokens, sequences = int(responses.mask.sum()), int(counted.sum())
    if responses.assumed:  # each was counted once for either sign
        tokens, sequences = tokens // 2, sequences // 2
    entries = sequences if method.level == "sequence" else tokens
    token_values = phi[responses.mask]
    total = float(entry.sum())
    return MethodResponse(
        label=method.label,
        parameters=dataclasses.asdict(method) if dataclasses.is_dataclass(method) else {},
        level=method.level,
        reads=method.reads,
        unit="sequences" if method.level == "sequence" else "tokens",
        mean=sums.estimate(("weight", "entries"), quotient, n=entries, missing="no token"),
        ess=sums.estimate(
            ("scaled", "squares", "entries"), kish, n=entries, missing="every weight is 0", highest=1.0
        ),
        kept_fraction=sums.estimate(("kept", "tokens"), quotient, n=tokens, missing="no token", highest=1.0),
        kept_above=method.kept_above,
        positive_mass=sums.estimate(
            ("positive_weight", "positive"), quotient, n=int(positive.sum()), missing="no advantage above 0"
        ),
        negative_mass=sums.estimate(
            ("negative_weight", "negative"), quotient, n=int(negative.sum()), missing="no advantage below 0"
        ),
        mass_ratio=sums.estimate(
            ("negative_weight", "negative", "positive_weight", "positive"),
            ratio_of_quotients,
            n=entries,
            missing="needs advantages of both signs, and weight above 0 where they are positive",
        ),
        gradient_mass=sums.estimate(
            ("gradient", "size"),
            quotient,
            n=tokens,
            missing="the run has no advantages" if responses.assumed else "every advantage is 0",
        ),
        max_weight_share=float(entry.max()) / total if total > 0 else 0.0,
        empty_tokens=int((token_values <= EMPTY).sum()),
        empty_sequences=int((_sequence_max(responses, phi)[counted] <= EMPTY).sum()),
        sign_basis="assumed" if responses.assumed else "advantage",
        by_length=length_buckets(
            lengths[counted],
            responses.log_weight()[counted],
            responses.advantages[counted],
            per_sequence[counted],
            by_token=method.level == "token",
        ),
        curve=weight_curve(method, responses.log_weight()[counted], lengths[counted])
        if method.level == "sequence" and with_curve
        else None,
        points=weight_points(
            responses.log_weight()[counted], responses.advantages[counted], per_sequence[counted]
        ),
    )


def _prompt_sums(
    method: WeightMethod,
    responses: Responses,
    phi: FloatArray,
    entry: FloatArray,
    sequence: IntArray,
    *,
    resamples: int,
    seed: int,
) -> PromptSums:
    """Sums by prompt: everything that the estimates of a response are ratios of."""
    prompts = responses.num_prompts
    positive, negative = responses.advantages[sequence] > 0, responses.advantages[sequence] < 0
    # Squares of saturated weights overflow; the effective size does not change with the scale.
    scaled = entry / max(float(np.abs(entry).max()), 1e-300)
    inside = responses.segment()[responses.mask]
    kept = phi[responses.mask] > method.kept_above
    size = np.zeros(len(inside)) if responses.assumed else np.abs(responses.advantages[inside])

    def by_prompt(sequences: IntArray, values: npt.NDArray[Any]) -> FloatArray:
        return np.bincount(
            responses.clusters[sequences], weights=values.astype(np.float64), minlength=prompts
        ).astype(np.float64)

    columns = {
        "entries": by_prompt(sequence, np.ones(len(entry))),
        "weight": by_prompt(sequence, entry),
        "scaled": by_prompt(sequence, scaled),
        "squares": by_prompt(sequence, scaled**2),
        "positive": by_prompt(sequence, positive),
        "positive_weight": by_prompt(sequence, entry * positive),
        "negative": by_prompt(sequence, negative),
        "negative_weight": by_prompt(sequence, entry * negative),
        "tokens": by_prompt(inside, np.ones(len(inside))),
        "kept": by_prompt(inside, kept),
        "size": by_prompt(inside, size),
        "gradient": by_prompt(inside, size * phi[responses.mask]),
    }
    return PromptSums(columns, resamples, seed)


def _sequence_max(responses: Responses, phi: FloatArray) -> FloatArray:
    """Largest phi of each sequence, [sequences]; 0 for one without tokens."""
    largest = np.zeros(len(responses.offsets) - 1)
    np.maximum.at(largest, responses.segment()[responses.mask], phi[responses.mask])
    return largest
