"""The response of a correction along its hyperparameters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.simulate.respond import respond
from mismatch_probe.simulate.response import MethodResponse
from mismatch_probe.simulate.responses import Responses


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One combination of hyperparameters.

    Attributes:
        values: What was swept, by name.
        response: What the correction does with them.
    """

    values: dict[str, Any]
    response: MethodResponse


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
    from mismatch_probe.weights import get_method

    if not grid or not all(len(values) for values in grid.values()):
        raise ConfigError("a sweep needs at least one hyperparameter with at least one value")
    points = []
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        method = get_method(name, **{**(fixed or {}), **values})
        response = respond(method, responses, resamples=resamples, seed=seed)
        points.append(SweepPoint(values, response))
    return points
