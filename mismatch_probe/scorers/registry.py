"""The training-side scorers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mismatch_probe.registry import Registry
from mismatch_probe.scorers.protocol import Scorer, ScorerCapabilities, ScorerSpec

Check = Callable[[Path, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class ScorerEntry:
    """How to ask about a scorer without loading it, and how to load it.

    Attributes:
        make: Loads the scorer; heavy imports happen in here.
        capabilities: Cheap; imports nothing heavy.
        check: Raises ConfigError where a checkpoint folder cannot be scored under given options; cheap, loads nothing.
        capabilities_with: Capabilities under given `train.options`, where they matter; cheap.
        warm: Imports what `make` will import whatever it is told; it touches no device. None where that is little.
    """

    make: Callable[[ScorerSpec], Scorer]
    capabilities: Callable[[], ScorerCapabilities]
    check: Check | None = None
    capabilities_with: Callable[[Mapping[str, Any]], ScorerCapabilities] | None = None
    warm: Callable[[], object] | None = None

    def able(self, options: Mapping[str, Any]) -> ScorerCapabilities:
        """What the scorer can give when it is loaded with `options`."""
        return self.capabilities() if self.capabilities_with is None else self.capabilities_with(options)


def _load_own() -> None:
    import mismatch_probe.scorers.engine_scorer
    import mismatch_probe.scorers.megatron_scorer
    import mismatch_probe.scorers.sharded_scorer
    import mismatch_probe.scorers.transformers_scorer  # noqa: F401  (all register themselves)


scorers: Registry[ScorerEntry] = Registry("scorer", "mismatch_probe.scorers", _load_own)


def register_scorer(
    name: str,
    *,
    summary: str,
    capabilities: Callable[[], ScorerCapabilities],
    check: Check | None = None,
    capabilities_with: Callable[[Mapping[str, Any]], ScorerCapabilities] | None = None,
    warm: Callable[[], object] | None = None,
) -> Callable[[Callable[[ScorerSpec], Scorer]], Callable[[ScorerSpec], Scorer]]:
    """Decorates a scorer's factory so that `--train NAME` finds it."""

    def register(make: Callable[[ScorerSpec], Scorer]) -> Callable[[ScorerSpec], Scorer]:
        scorers.add(name, ScorerEntry(make, capabilities, check, capabilities_with, warm), summary)
        return make

    return register
