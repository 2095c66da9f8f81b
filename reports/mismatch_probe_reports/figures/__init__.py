"""Figures of the report: each module reads what it needs from result.json and says why when it cannot be drawn."""

from __future__ import annotations

from mismatch_probe_reports.figures import (
    ecdf,
    log_weight_length,
    routing,
    token_probability,
    waterfall,
    weights,
)
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.reading import Json

SOURCES = (waterfall, token_probability, ecdf, log_weight_length, weights, routing)


def prepare_figures(result: Json) -> tuple[Plot | Missing, ...]:
    """Return every figure in the order of the report, drawable or with the reason why not."""
    return tuple(source.prepare(result) for source in SOURCES)
