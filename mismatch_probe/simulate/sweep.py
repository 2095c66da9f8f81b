"""The response of a correction along its hyperparameters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.simulate.respond import respond_all
from mismatch_probe.simulate.response import MethodResponse, Unavailable
from mismatch_probe.simulate.responses import Responses

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One combination of hyperparameters.

    Attributes:
        values: What was swept, by name.
        response: What the correction does with them, or why it cannot be had.
    """

    values: dict[str, Any]
    response: MethodResponse | Unavailable


def sweep(
    name: str,
    grid: Mapping[str, Sequence[Any]],
    responses: Responses,
    *,
    fixed: Mapping[str, Any] | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> list[SweepPoint]:
    """Every combination of some hyperparameters on the same responses, with the same bootstrap draws.

    Args:
        name: Method.
        grid: Values by hyperparameter; the last name varies fastest.
        responses: The responses.
        fixed: Other hyperparameters away from their defaults.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.

    Raises:
        ConfigError: Unknown names, values out of range, or nothing to sweep.
    """
    settings = combinations(name, grid, fixed)
    methods = {str(place): method for place, (_, method) in enumerate(settings)}
    made = respond_all(methods, responses, resamples=resamples, seed=seed)
    return [SweepPoint(values, made[str(place)]) for place, (values, _) in enumerate(settings)]


def combinations(
    name: str, grid: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any] | None = None
) -> list[tuple[dict[str, Any], WeightMethod]]:
    """Every combination of a sweep with the method that it makes; arguments as of `sweep`.

    Raises:
        ConfigError: Unknown names, values out of range, or nothing to sweep.
    """
    from mismatch_probe.weights import get_method

    if not grid or not all(len(values) for values in grid.values()):
        raise ConfigError("a sweep needs at least one hyperparameter with at least one value")
    made = []
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        made.append((values, get_method(name, **{**(fixed or {}), **values})))
    return made
