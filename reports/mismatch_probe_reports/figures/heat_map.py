"""A small heat map with its numbers in the cells: more colour is more of the signal left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mismatch_probe_reports.figures.style import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NUMBERS = 60


@dataclass(frozen=True, slots=True)
class HeatMap:
    """What one panel shows.

    Attributes:
        title: Of the panel.
        x: Name of the columns.
        y: Name of the rows.
        columns: Label of each column.
        rows: Label of each row, from the bottom up.
        values: float64 [rows, columns], NaN where there is none.
        marked: (row, column) of cells to outline.
    """

    title: str
    x: str
    y: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: NDArray[np.float64]
    marked: Sequence[tuple[int, int]] = ()


def draw_heat_map(
    panel: Axes, palette: Palette, heat: HeatMap, span: tuple[float, float], *, size: float = 8.5
) -> None:
    """Draw one panel.

    Args:
        panel: Where to.
        palette: Colours.
        heat: What.
        span: Values that have the least and the most colour.
        size: Of the numbers, points.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgb
    from matplotlib.patches import Rectangle

    # One mid-tone of growing opacity reads on white, on dark and in greyscale.
    tone = to_rgb(palette.raster[0])
    shades = LinearSegmentedColormap.from_list("left", [(*tone, 0.04), (*tone, 0.85)])
    low, high = span
    panel.pcolormesh(
        np.arange(len(heat.columns) + 1) - 0.5,
        np.arange(len(heat.rows) + 1) - 0.5,
        heat.values,
        cmap=shades,
        vmin=low,
        vmax=high if high > low else low + 1.0,
        rasterized=True,
        linewidth=0,
        edgecolors="none",
    )
    if heat.values.size <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(heat.values):
            text = cell_text(float(value)) if np.isfinite(value) else "-"
            panel.text(column, row, text, ha="center", va="center", fontsize=size, color=palette.foreground)
    for row, column in heat.marked:
        outline = Rectangle(
            (column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor=palette.foreground, linewidth=1.6
        )
        panel.add_patch(outline)
    panel.grid(visible=False)
    panel.set_xticks(*_ticks(heat.columns), fontsize=9)
    panel.set_yticks(*_ticks(heat.rows), fontsize=9)
    panel.tick_params(length=0)
    panel.set_title(heat.title, fontsize=10.5, pad=5)
    panel.set_xlabel(heat.x)
    panel.set_ylabel(heat.y)


def cell_text(value: float) -> str:
    """Write a number in two to four characters: .05, .98, .998, 1, 1.2, 12."""
    if abs(value) >= 9.95:
        return f"{value:.0f}" if abs(value) < 1000 else f"{value:.0e}".replace("e+0", "e")
    if abs(value) >= 0.9995:
        return f"{value:.1f}".removesuffix(".0")
    if value == 0:
        return "0"
    digits = 3 if abs(value) >= 0.995 else 2
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) >= 0.005 else "<.01"


def _ticks(labels: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return places and labels, at most a dozen."""
    step = -(-len(labels) // 12)
    return list(range(0, len(labels), step)), list(labels[::step])
