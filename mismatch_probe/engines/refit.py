"""Loading weights again into a running engine: what an engine must offer so that a weight sync can be checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from mismatch_probe.engines.protocol import RolloutEngine


@dataclass(frozen=True, slots=True)
class WeightDifference:
    """One piece of an engine's state that differs from that of another engine.

    Attributes:
        name: Parameter or buffer, or `<module>.output` for weights that a kernel has packed away, which are
            judged by what the module answers to a fixed input.
        module: The module that holds it.
        shape: Of the state that was compared with.
        max_abs: Largest absolute difference; None where shapes differ, one side is missing, or digests were compared.
        differing_fraction: Share of elements that differ in any bit; None likewise.
        what: "differs", "shape differs", "missing" or "unexpected".
    """

    name: str
    module: str
    shape: tuple[int, ...]
    max_abs: float | None
    differing_fraction: float | None
    what: str


@dataclass(frozen=True, slots=True)
class WeightComparison:
    """An engine's state held against a saved one.

    Attributes:
        compared: Pieces of state that were compared.
        unread: Empty tensors whose module could not be asked either: nothing is known of them.
        differences: What is not equal in every bit.
    """

    compared: int
    unread: tuple[str, ...]
    differences: tuple[WeightDifference, ...]


@dataclass(frozen=True, slots=True)
class StateDigest:
    """An engine's state in a few kilobytes, whatever the size of the model.

    Attributes:
        tensors: By name, shape and SHA-256.
        unread: Empty tensors whose module could not be asked either.
    """

    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    unread: tuple[str, ...]


def compare_digests(held: StateDigest, found: StateDigest) -> WeightComparison:
    """Which pieces of state differ in any bit; by how much, digests do not say.

    Args:
        held: The state that is taken for right.
        found: The state in question.
    """
    differences = []
    for name in sorted(held.tensors.keys() | found.tensors.keys()):
        one, other = held.tensors.get(name), found.tensors.get(name)
        if one == other:
            continue
        if one is None or other is None:
            what = "unexpected" if one is None else "missing"
        else:
            what = "differs" if one[0] == other[0] else "shape differs"
        shape = (other or one or ((), ""))[0]
        differences.append(WeightDifference(name, name.rpartition(".")[0], shape, None, None, what))
    return WeightComparison(
        compared=len(held.tensors.keys() | found.tensors.keys()),
        unread=tuple(sorted({*held.unread, *found.unread})),
        differences=tuple(differences),
    )


@runtime_checkable
class RefittableEngine(RolloutEngine, Protocol):
    """A rollout engine that can load weights while it runs, as RL training does after each step."""

    def load_weights(self, checkpoint: Path) -> None:
        """Loads a checkpoint through the engine's own update path and drops every cache that old weights filled.

        Raises:
            CaptureError: The engine refused.
        """
        ...

    def save_state(self, folder: Path) -> None:
        """Writes the weights as the engine holds them, packed layouts included, for `compare_state`."""
        ...

    def compare_state(self, folder: Path) -> WeightComparison:
        """Compares the weights as the engine holds them with what `save_state` wrote, bit by bit."""
        ...

    def digest_state(self) -> StateDigest:
        """Digests of the weights as the engine holds them, for `compare_digests`; writes nothing."""
        ...
