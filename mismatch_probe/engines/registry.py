"""The rollout engines by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mismatch_probe.engines.protocol import EngineCapabilities, EngineSpec, RolloutEngine
from mismatch_probe.registry import Registry


@dataclass(frozen=True, slots=True)
class WorkerEnvironment:
    """Another Python environment that an engine has to run in.

    Attributes:
        python: Its interpreter. It needs numpy, pyarrow, pydantic, safetensors and the engine; this package is lent to it.
        module: What the interpreter runs in place of `mismatch_probe.stages.worker`, with the same arguments.
    """

    python: Path
    module: str


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """How to ask about an engine without starting it, and how to start it.

    Attributes:
        make: Starts the engine; heavy imports happen in here.
        capabilities: Cheap; imports nothing heavy.
        capabilities_with: The same under given `rollout.options`, where they matter; as cheap.
        differences: For an engine with a weight file of its own: where that is not the model of the checkpoint folder,
            as (key, the engine's value, the checkpoint's). Takes the folder and `rollout.options`.
        environment: For an engine that cannot run in this environment: where its worker runs, under `rollout.options`.
        warm: Imports what `make` will import whatever it is told; it touches no device. None where that is little.
    """

    make: Callable[[EngineSpec], RolloutEngine]
    capabilities: Callable[[], EngineCapabilities]
    capabilities_with: Callable[[Mapping[str, Any]], EngineCapabilities] | None = None
    differences: Callable[[Path, Mapping[str, Any]], Sequence[tuple[str, str, str]]] | None = None
    environment: Callable[[Mapping[str, Any]], WorkerEnvironment] | None = None
    warm: Callable[[], object] | None = None

    def able(self, options: Mapping[str, Any]) -> EngineCapabilities:
        """What the engine can give when it is started with `options`."""
        return self.capabilities() if self.capabilities_with is None else self.capabilities_with(options)


def _load_own() -> None:
    import mismatch_probe.engines.llama_cpp_engine
    import mismatch_probe.engines.server.openai_engine
    import mismatch_probe.engines.server.vllm_server_engine
    import mismatch_probe.engines.sglang.in_process
    import mismatch_probe.engines.sglang.server
    import mismatch_probe.engines.transformers_engine
    import mismatch_probe.engines.vllm_engine  # noqa: F401  (all register themselves)


engines: Registry[EngineEntry] = Registry("rollout engine", "mismatch_probe.engines", _load_own)


def register_engine(
    name: str,
    *,
    summary: str,
    capabilities: Callable[[], EngineCapabilities],
    capabilities_with: Callable[[Mapping[str, Any]], EngineCapabilities] | None = None,
    differences: Callable[[Path, Mapping[str, Any]], Sequence[tuple[str, str, str]]] | None = None,
    environment: Callable[[Mapping[str, Any]], WorkerEnvironment] | None = None,
    warm: Callable[[], object] | None = None,
) -> Callable[[Callable[[EngineSpec], RolloutEngine]], Callable[[EngineSpec], RolloutEngine]]:
    """Decorates an engine's factory so that `--rollout NAME` finds it."""

    def register(make: Callable[[EngineSpec], RolloutEngine]) -> Callable[[EngineSpec], RolloutEngine]:
        engines.add(
            name,
            EngineEntry(make, capabilities, capabilities_with, differences, environment, warm),
            summary,
        )
        return make

    return register
