"""All that an exporter can write, for three kinds of run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from core.export.conftest import build

from mismatch_probe.errors import ConfigError
from mismatch_probe.export import ExportedConfig, export_config
from mismatch_probe.weights import available_methods


@functools.cache
def runs() -> dict[str, dict[str, Any]]:
    """Results with little and much noise, of a dense and of a mixture model."""
    found = {
        "dense": build(noise=0.1, explained=None),
        "replay not worth it": build(noise=0.02, explained=0.1),
        "replay": build(noise=0.3, explained=0.8),
    }
    found["replay"]["provenance"]["sampling"]["top_k"] = 50
    return found


def exported(to: str) -> Iterator[tuple[str, str, ExportedConfig]]:
    """Method, kind of run and config of all that an exporter can write."""
    for method in available_methods():
        for kind, result in runs().items():
            try:
                yield method, kind, export_config(result, to, method=method)
            except ConfigError as error:
                assert "cannot express" in str(error)
