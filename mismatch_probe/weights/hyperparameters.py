"""Hyperparameters of a method: dataclass fields that know their allowed values."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from mismatch_probe.errors import ConfigError

Limits = Mapping[str, Any]


def limits(
    *, low: float = 0.0, high: float = math.inf, above: bool = False, optional: bool = False
) -> Limits:
    """Field metadata of a number within [low, high], or (low, high] with `above`; `optional` allows None."""
    return {"low": low, "high": high, "above": above, "optional": optional}


def one_of(meanings: Mapping[str, str]) -> Limits:
    """Field metadata of a word from a short list, each with what it stands for and whose code it is."""
    return {"choices": tuple(meanings), "meanings": dict(meanings)}


NOT_NEGATIVE = limits()
POSITIVE = limits(above=True)
FRACTION = limits(high=1.0)
ABOVE_ONE = limits(low=1.0, above=True)
OPTIONAL_BOUND = limits(above=True, optional=True)
OPTIONAL_CEILING = limits(low=1.0, above=True, optional=True)


def check_values(method: str, instance: Any) -> None:
    """Checks every field of a method against its limits.

    Raises:
        ConfigError: A value has the wrong type or lies outside its limits.
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        choices = field.metadata.get("choices")
        if choices is not None:
            if value not in choices:
                nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)
                raise ConfigError(
                    f"{method}: {field.name} cannot be {value!r}",
                    hint=f"one of {', '.join(choices)}; {nearest[0]!r}?",
                )
            continue
        if "low" not in field.metadata or (value is None and field.metadata.get("optional")):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{method}: {field.name} must be a finite number, not {value!r}")
        low, high = field.metadata["low"], field.metadata["high"]
        if value < low or value > high or (field.metadata["above"] and value == low):
            bound = f"above {low:g}" if field.metadata["above"] else f"at least {low:g}"
            ceiling = "" if math.isinf(high) else f" and at most {high:g}"
            raise ConfigError(f"{method}: {field.name} = {value:g} must be {bound}{ceiling}")


def check_names(method: str, kind: type[Any], given: Mapping[str, object]) -> None:
    """Checks that a method has the hyperparameters it is given.

    Raises:
        ConfigError: An unknown name; the hint gives the nearest known one.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            listing = f"{method} takes {', '.join(known)}" if known else f"{method} takes none"
            raise ConfigError(
                f"unknown hyperparameter {name!r} of method {method!r}",
                hint=f"did you mean {nearest[0]!r}? {listing}" if nearest else listing,
            )
