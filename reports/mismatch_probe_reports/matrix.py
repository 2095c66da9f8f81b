"""Views of a matrix of engines: page, PNG, terminal, Markdown; all from matrix.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mismatch_probe_reports.figures import matrix as figure
from mismatch_probe_reports.figures.canvas import Plot, to_png
from mismatch_probe_reports.html import render_section_page
from mismatch_probe_reports.markdown import section_markdown
from mismatch_probe_reports.png import write_bytes
from mismatch_probe_reports.reading import Json
from mismatch_probe_reports.sections.matrix import matrix_section, subject
from mismatch_probe_reports.terminal import print_section

if TYPE_CHECKING:
    from rich.console import Console


def write_matrix(matrix: Json, directory: Path) -> Path:
    """Write matrix.html and matrix.png; return the page.

    Args:
        matrix: matrix.json as a mapping.
        directory: The run directory of the matrix.

    Raises:
        OSError: The directory cannot be written to.
    """
    drawn = figure.prepare(matrix)
    page = directory / "matrix.html"
    write_bytes(
        page, render_section_page(matrix_section(matrix), subject(matrix), [drawn], matrix).encode("utf-8")
    )
    if isinstance(drawn, Plot):
        write_bytes(directory / "matrix.png", to_png(drawn))
    return page


def render_matrix_terminal(matrix: Json, console: Console) -> None:
    """Print the matrix with all its tables."""
    print_section(matrix_section(matrix), console)


def render_matrix_markdown(matrix: Json) -> str:
    """Return the matrix in Markdown."""
    return section_markdown(matrix_section(matrix))
