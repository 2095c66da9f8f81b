"""Figures as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mismatch_probe.trace.parts import write_atomically
from mismatch_probe_reports.figures import prepare_figures
from mismatch_probe_reports.figures.canvas import Drawing, Missing, Plot, draw
from mismatch_probe_reports.reading import Json


def write_figures(result: Json, directory: Path) -> list[Path]:
    """Write every figure that can be drawn; `prepare_figures` gives the reasons for the others.

    Args:
        result: result.json as a mapping.
        directory: Where the figures go, each as `<name>.png` under its name in `mismatch_probe_reports.figures`.

    Raises:
        OSError: The directory cannot be written to.
    """
    figures = prepare_figures(result)
    drawings = {figure.name: draw(figure) for figure in figures if isinstance(figure, Plot)}
    return write_drawings(figures, drawings, directory)


def write_drawings(
    figures: Sequence[Plot | Missing], drawings: Mapping[str, Drawing], directory: Path
) -> list[Path]:
    """Write drawn figures; a file of an earlier report whose figure is now missing is removed."""
    written = []
    for figure in figures:
        path = directory / f"{figure.name}.png"
        if figure.name not in drawings:
            path.unlink(missing_ok=True)
            continue
        write_bytes(path, drawings[figure.name].png)
        written.append(path)
    return written


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write)
