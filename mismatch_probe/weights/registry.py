"""The corrections by name."""

from __future__ import annotations

from typing import Any, TypeVar

from mismatch_probe.registry import Registry
from mismatch_probe.weights.hyperparameters import check_names
from mismatch_probe.weights.method import WeightMethod

M = TypeVar("M", bound=type[Any])


def _load_own() -> None:
    import mismatch_probe.weights.clipped
    import mismatch_probe.weights.plain
    import mismatch_probe.weights.sequence
    import mismatch_probe.weights.sequence_masks
    import mismatch_probe.weights.smooth
    import mismatch_probe.weights.token_masks
    import mismatch_probe.weights.truncated
    import mismatch_probe.weights.trust_region
    import mismatch_probe.weights.vespo  # noqa: F401  (each registers its methods)


methods: Registry[type[Any]] = Registry("method", "mismatch_probe.methods", _load_own)


def register_method(kind: M) -> M:
    """Decorates a method's class so that `get_method` finds it by its name; its docstring describes it."""
    methods.add(kind.name, kind, (kind.__doc__ or "").strip().partition("\n")[0])
    return kind


def available_methods() -> tuple[str, ...]:
    """The names of all methods, sorted."""
    return tuple(entry.name for entry in methods)


def get_method(name: str, **hyperparameters: Any) -> WeightMethod:
    """Makes a method.

    Args:
        name: One of `available_methods()`.
        **hyperparameters: Its fields; what is not given has the source's default.

    Raises:
        ConfigError: Unknown method or hyperparameter (the hint names the nearest), or a value out of range.
    """
    kind = methods.get(name).item
    check_names(name, kind, hyperparameters)
    made: WeightMethod = kind(**hyperparameters)
    return made
