"""Runs corrections over measured log-probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy.typing as npt

from mismatch_probe.errors import MismatchProbeError
from mismatch_probe.simulate.bias import against_sequence_is, tail_of
from mismatch_probe.simulate.buckets import bucket_places, weight_points
from mismatch_probe.simulate.cells import Cells
from mismatch_probe.simulate.curve import weight_curve
from mismatch_probe.simulate.families import family_of
from mismatch_probe.simulate.response import MethodResponse, Unavailable
from mismatch_probe.simulate.responses import Responses
from mismatch_probe.simulate.sums import ground_of, sum_weights

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod


def simulate_methods(
    train_logprobs: npt.ArrayLike,
    rollout_logprobs: npt.ArrayLike,
    offsets: npt.ArrayLike,
    clusters: npt.ArrayLike,
    advantages: npt.ArrayLike | None,
    *,
    methods: Sequence[str | WeightMethod] | None = None,
    old_logprobs: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, MethodResponse | Unavailable]:
    """What each correction would do with these responses.

    Args:
        train_logprobs: log pi, [tokens], nats.
        rollout_logprobs: log mu, [tokens], nats.
        offsets: [sequences + 1].
        clusters: Prompt of each sequence, [sequences]; what intervals resample.
        advantages: A per sequence, or None; then both signs are tried on every sequence, see
            `MethodResponse.sign_basis`.
        methods: Names (with default hyperparameters) or methods; None takes all that are registered.
        old_logprobs: log pi_old, [tokens], or None: the trainer has just the rollout's weights.
        mask: [tokens], true where a token counts; None counts all.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Returns:
        By name, in the order asked for; `Unavailable` for a method that cannot be had on these responses.

    Raises:
        ConfigError: Shapes do not line up, or an unknown method.
        InconclusiveError: No sequence with a token.
    """
    responses = Responses.of(
        train_logprobs, rollout_logprobs, offsets, clusters, advantages, old_logprobs=old_logprobs, mask=mask
    )
    return respond_all(methods, responses, resamples=resamples, seed=seed, complete=True)


def respond_all(
    methods: Sequence[str | WeightMethod] | Mapping[str, WeightMethod] | None,
    responses: Responses,
    *,
    resamples: int = 1000,
    seed: int = 0,
    complete: bool = False,
) -> dict[str, MethodResponse | Unavailable]:
    """What each correction would do with checked responses; see `simulate_methods`.

    Args:
        methods: Names or methods, or methods by keys of the caller's (one method with several hyperparameters);
            None takes all that are registered.
        responses: The responses.
        resamples: Bootstrap resamples; 0 leaves out intervals.
        seed: Of the bootstrap.
        complete: Whether to add numbers by sign and by length, bias and variance, the curve and the points.

    Returns:
        By name or by key, in the order asked for.

    Raises:
        ConfigError: An unknown method.
    """
    chosen = _by_key(methods)
    ground = ground_of(responses)
    places = bucket_places(ground.lengths) if complete else []
    tail = tail_of(ground) if complete else None
    sums = sum_weights(chosen, responses, ground)
    made: dict[str, MethodResponse | Unavailable] = {}
    for key, method in chosen.items():
        own = sums[key]
        if isinstance(own, MismatchProbeError):
            made[key] = Unavailable(method.label, str(own))
            continue
        cells = Cells.of(method, ground, own, resamples=resamples, seed=seed)
        made[key] = _total(method, cells)
        if tail is not None:
            made[key] = dataclasses.replace(
                _total(method, cells),
                by_sign={"positive": cells.sign(1.0), "negative": cells.sign(-1.0)},
                by_length=[cells.bucket(here) for here in places],
                against_sequence_is=against_sequence_is(
                    own.weight / ground.lengths, ground, tail, resamples=resamples, seed=seed
                ),
                curve=weight_curve(method, ground),
                points=weight_points(method.level, ground, own),
            )
    return made


def respond(
    method: WeightMethod, responses: Responses, *, resamples: int = 1000, seed: int = 0
) -> MethodResponse:
    """The totals of one correction on checked responses; see `respond_all`.

    Raises:
        MismatchProbeError: The method cannot be had on these responses.
    """
    ground = ground_of(responses)
    sums = sum_weights({method.name: method}, responses, ground)[method.name]
    if isinstance(sums, MismatchProbeError):
        raise sums
    return _total(method, Cells.of(method, ground, sums, resamples=resamples, seed=seed))


def _by_key(
    methods: Sequence[str | WeightMethod] | Mapping[str, WeightMethod] | None,
) -> Mapping[str, WeightMethod]:
    from mismatch_probe.weights import available_methods, get_method

    if isinstance(methods, Mapping):
        return methods
    names = available_methods() if methods is None else methods
    made = [get_method(method) if isinstance(method, str) else method for method in names]
    return {method.name: method for method in made}


def _total(method: WeightMethod, cells: Cells) -> MethodResponse:
    return MethodResponse(
        label=method.label,
        family=family_of(method.name),
        parameters=dataclasses.asdict(method) if dataclasses.is_dataclass(method) else {},
        level=method.level,
        reads=method.reads,
        unit="sequences" if method.level == "sequence" else "tokens",
        kept_above=method.kept_above,
        **cells.totals(),
    )
