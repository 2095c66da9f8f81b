"""Figures of the report: each module reads what it needs from result.json and says why when it cannot be drawn."""

from __future__ import annotations

from typing import Protocol

from mismatch_probe_reports.figures import (
    ablation,
    ecdf,
    location,
    log_weight_length,
    routing,
    routing_flips,
    token_probability,
    waterfall,
    weight_curves,
    weight_extrapolation,
    weight_sweep,
    weights,
)
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.reading import Json


class Source(Protocol):
    """Something that makes one figure of a result: a module, or one of several figures of a module."""

    def prepare(self, result: Json, /) -> Plot | Missing:
        """Read what is needed and return the plot, or why there is none."""
        ...


SOURCES: tuple[Source, ...] = (
    waterfall,
    token_probability,
    ecdf,
    log_weight_length,
    weights,
    weight_curves.SEQUENCES,
    weight_curves.TOKENS,
    weight_sweep,
    weight_extrapolation,
    routing,
    routing_flips,
    ablation,
    location,
)


def prepare_figures(result: Json) -> tuple[Plot | Missing, ...]:
    """Return every figure in the order of the report, drawable or with the reason why not."""
    return tuple(source.prepare(result) for source in SOURCES)
