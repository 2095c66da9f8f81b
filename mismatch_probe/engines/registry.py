"""The rollout engines by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mismatch_probe.engines.protocol import EngineCapabilities, EngineSpec, RolloutEngine
from mismatch_probe.registry import Registry


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """How to ask about an engine without starting it, and how to start it.

    Attributes:
        make: Starts the engine; heavy imports happen in here.
        capabilities: Cheap; imports nothing heavy.
    """

    make: Callable[[EngineSpec], RolloutEngine]
    capabilities: Callable[[], EngineCapabilities]


def _load_own() -> None:
    import mismatch_probe.engines.vllm_engine  # noqa: F401  (registers itself)


engines: Registry[EngineEntry] = Registry("rollout engine", "mismatch_probe.engines", _load_own)


def register_engine(
    name: str, *, summary: str, capabilities: Callable[[], EngineCapabilities]
) -> Callable[[Callable[[EngineSpec], RolloutEngine]], Callable[[EngineSpec], RolloutEngine]]:
    """Decorates an engine's factory so that `--rollout NAME` finds it."""

    def register(make: Callable[[EngineSpec], RolloutEngine]) -> Callable[[EngineSpec], RolloutEngine]:
        engines.add(name, EngineEntry(make, capabilities), summary)
        return make

    return register
