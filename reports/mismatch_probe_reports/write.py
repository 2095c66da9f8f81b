"""Writing the files of a report."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mismatch_probe_reports.figures import prepare_figures
from mismatch_probe_reports.figures.canvas import Drawing, Missing, Plot, draw
from mismatch_probe_reports.figures.overview import NAME as OVERVIEW
from mismatch_probe_reports.figures.overview import overview_png
from mismatch_probe_reports.html import render_page
from mismatch_probe_reports.png import write_bytes, write_drawings
from mismatch_probe_reports.reading import Json

PAGE_LIMIT = 1_000_000
"""Bytes of a page: what mail servers, forges and browsers on phones take without asking."""


@dataclass(frozen=True, slots=True)
class ReportFiles:
    """What was written.

    Attributes:
        html: The page.
        figures: PNG files.
        skipped: Figures that were left out; `str()` of one gives its name and the reason.
    """

    html: Path
    figures: tuple[Path, ...]
    skipped: tuple[Missing, ...]


def write_report(result: Json, run_dir: Path, explorer: Json | None = None) -> ReportFiles:
    """Write report.html and figures/*.png into a run directory; each file appears whole or not at all.

    Args:
        result: result.json as a mapping.
        run_dir: The run directory.
        explorer: What the token explorer shows, or None for a page without it.

    Raises:
        OSError: The directory cannot be written to.
    """
    figures = prepare_figures(result)
    with _without_collector():
        drawings = {figure.name: draw(figure) for figure in figures if isinstance(figure, Plot)}
    html = run_dir / "report.html"
    write_bytes(html, _fitting_page(result, figures, explorer, drawings))
    overview = run_dir / "figures" / f"{OVERVIEW}.png"
    written = write_drawings(figures, drawings, run_dir / "figures")
    write_bytes(overview, overview_png(result))
    skipped = tuple(figure for figure in figures if isinstance(figure, Missing))
    return ReportFiles(html, (*written, overview), skipped)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Drawing makes many objects that refer to each other; looking for garbage among them takes a tenth of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _fitting_page(
    result: Json,
    figures: Sequence[Plot | Missing],
    explorer: Json | None,
    drawings: Mapping[str, Drawing],
) -> bytes:
    """The page, with as many sequences in the explorer as the limit leaves room for; it says how many are left out."""
    page = render_page(result, figures, explorer, drawings).encode("utf-8")
    sequences = list((explorer or {}).get("sequences") or ())
    keep = len(sequences)
    while len(page) > PAGE_LIMIT and keep > 0:
        keep //= 2
        shown = {**(explorer or {}), "sequences": sequences[:keep], "left_out": len(sequences) - keep}
        page = render_page(result, figures, shown, drawings).encode("utf-8")
    return page
