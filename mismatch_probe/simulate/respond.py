"""Runs corrections over measured log-probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mismatch_probe.errors import ConfigError, InconclusiveError
from mismatch_probe.simulate.buckets import length_buckets, weight_points
from mismatch_probe.simulate.curve import weight_curve
from mismatch_probe.simulate.intervals import PromptSums, kish, quotient, ratio_of_quotients
from mismatch_probe.simulate.response import MethodResponse

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

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


@dataclass(frozen=True, slots=True, eq=False)
class Responses:
    """Checked numpy arrays: the responses that corrections are tried on.

    Without advantages every sequence is there twice, first all with A = 1, then all with A = -1.

    Attributes:
        train: log pi, float64 [tokens].
        rollout: log mu, float64 [tokens].
        old: log pi_old, float64 [tokens], or None.
        mask: bool [tokens].
        offsets: int64 [sequences + 1].
        clusters: Index of the prompt, int64 [sequences], 0 .. prompts - 1.
        advantages: float64 [sequences].
        assumed: Whether the advantages are the two assumed signs.
    """

    train: FloatArray
    rollout: FloatArray
    old: FloatArray | None
    mask: BoolArray
    offsets: IntArray
    clusters: IntArray
    advantages: FloatArray
    assumed: bool

    @classmethod
    def of(
        cls,
        train_logprobs: npt.ArrayLike,
        rollout_logprobs: npt.ArrayLike,
        offsets: npt.ArrayLike,
        clusters: npt.ArrayLike,
        advantages: npt.ArrayLike | None,
        *,
        old_logprobs: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
    ) -> Responses:
        """Checks shapes and that there is something to weigh; arguments as of `simulate_methods`."""
        train = np.asarray(train_logprobs, dtype=np.float64)
        bounds = np.asarray(offsets, dtype=np.int64)
        sequences = len(bounds) - 1
        columns = {"rollout_logprobs": np.asarray(rollout_logprobs, dtype=np.float64)}
        if old_logprobs is not None:
            columns["old_logprobs"] = np.asarray(old_logprobs, dtype=np.float64)
        inside = np.ones(train.shape, dtype=bool) if mask is None else np.asarray(mask).astype(bool)
        for name, column in {**columns, "mask": inside}.items():
            if column.shape != train.shape:
                raise ConfigError(f"{name} has {column.size} tokens, train_logprobs {train.size}")
        if (
            train.ndim != 1
            or sequences < 0
            or bounds[0] != 0
            or bounds[-1] != len(train)
            or np.any(np.diff(bounds) < 0)
        ):
            raise ConfigError(f"offsets must ascend from 0 to the number of tokens, {train.size}")
        prompts = np.asarray(clusters)
        if prompts.shape != (sequences,):
            raise ConfigError(f"{prompts.size} prompts for {sequences} sequences")
        if not inside.any():
            raise InconclusiveError("no response token to weigh", hint="record responses first")
        index = np.unique(prompts, return_inverse=True)[1].astype(np.int64)
        old = columns.get("old_logprobs")
        if advantages is not None:
            amounts = np.asarray(advantages, dtype=np.float64)
            if amounts.shape != (sequences,):
                raise ConfigError(f"{amounts.size} advantages for {sequences} sequences")
            return cls(train, columns["rollout_logprobs"], old, inside, bounds, index, amounts, assumed=False)
        return cls(
            train=np.tile(train, 2),
            rollout=np.tile(columns["rollout_logprobs"], 2),
            old=None if old is None else np.tile(old, 2),
            mask=np.tile(inside, 2),
            offsets=np.concatenate([bounds, bounds[1:] + len(train)]),
            clusters=np.tile(index, 2),
            advantages=np.repeat([1.0, -1.0], sequences),
            assumed=True,
        )

    def segment(self) -> IntArray:
        """Index of each token's sequence, [tokens]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def sequence_sum(self, values: npt.NDArray[Any]) -> FloatArray:
        """Sum over the tokens of each sequence that count, [sequences]."""
        return np.bincount(
            self.segment()[self.mask], weights=values[self.mask], minlength=len(self.offsets) - 1
        ).astype(np.float64)

    def lengths(self) -> FloatArray:
        """Tokens that count, [sequences]."""
        return self.sequence_sum(np.ones(len(self.train)))

    def log_weight(self) -> FloatArray:
        """Sum of log pi - log mu over each sequence, nats, [sequences]."""
        return self.sequence_sum(np.where(self.mask, self.train - self.rollout, 0.0))

    def coefficients(self, method: WeightMethod) -> FloatArray:
        """The weight of every token, [tokens]; 0 where a token does not count."""
        from mismatch_probe.weights import Batch

        batch = Batch.from_arrays(
            self.train,
            self.rollout,
            self.offsets,
            np.repeat(self.advantages, np.diff(self.offsets)),
            old_logprobs=self.old,
            mask=self.mask,
        )
        return np.asarray(method.coefficients(batch).numpy(), dtype=np.float64)


def respond(
    method: WeightMethod, responses: Responses, *, resamples: int = 1000, seed: int = 0
) -> MethodResponse:
    """What one correction would do with checked responses; see `simulate_methods`."""
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
        if method.level == "sequence"
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
    prompts = int(responses.clusters.max()) + 1
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
