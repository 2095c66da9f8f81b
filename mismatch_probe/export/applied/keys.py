"""Keys of an exported config, and methods that stand for one factor of a framework's loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mismatch_probe.errors import ConfigError
from mismatch_probe.export.annotated import Entry

if TYPE_CHECKING:
    from mismatch_probe.weights import WeightMethod

Keys = Mapping[str, Any]
Methods = tuple["WeightMethod", ...]


def keys_of(entries: Iterable[Entry], prefix: str = "") -> dict[str, Any]:
    """Values by key; of the keys that begin with a prefix, without it.

    Args:
        entries: What was written.
        prefix: With its last dot.
    """
    return {entry.key.removeprefix(prefix): entry.value for entry in entries if entry.key.startswith(prefix)}


def method_of(framework: str | None, name: str, **changes: Any) -> WeightMethod:
    """A method as coded in a framework, or as its source has it; imported at first use."""
    from mismatch_probe.weights import get_method, get_method_as_coded

    if framework is None:
        return get_method(name, **changes)
    return get_method_as_coded(framework, name, **changes)


def mismatch_factor(framework: str | None, name: str, **changes: Any) -> WeightMethod:
    """What a method does with pi_old / mu, without the clip of pi / pi_old under it; arguments as of `method_of`."""
    return method_of(framework, name, objective="none", dual_c=None, clamp=None, **changes)


def without_method(framework: str, keys: str) -> ConfigError:
    """The error for keys that no method here stands for."""
    return ConfigError(
        f"no method stands for what {framework} does with {keys}",
        hint="the config can be used; what it does to this run cannot be said beforehand",
    )
