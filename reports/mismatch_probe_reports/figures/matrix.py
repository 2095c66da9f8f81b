"""The matrix of engines as a heat map of K3."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import Palette
from mismatch_probe_reports.reading import Json, read_list, read_number, read_rows, read_text

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

NAME = "matrix"
TITLE = "Engines against each other: K3 a token"
MARKS = {"drift": "drift", "inconclusive": "inconclusive", "pass": "pass"}


def prepare(matrix: Json) -> Plot | Missing:
    """Read matrix.json and return the plot, or why there is none."""
    sources = [read_text(name) for name in read_list(matrix.get("sources"))]
    readers = [read_text(name) for name in read_list(matrix.get("readers"))]
    values = np.full((len(sources), len(readers)), math.nan)
    words = [["" for _ in readers] for _ in sources]
    for cell in read_rows(matrix.get("cells")):
        source, reader = read_text(cell.get("source")), read_text(cell.get("reader"))
        if source not in sources or reader not in readers:
            continue
        row, column = sources.index(source), readers.index(reader)
        k3 = read_number(cell.get("k3")).value
        if cell.get("status") != "done" or k3 is None:
            words[row][column] = "failed" if cell.get("status") != "done" else "n/a"
            continue
        values[row, column] = k3
        verdict = MARKS.get(read_text(cell.get("verdict")), "")
        words[row][column] = f"{'EXACT' if k3 == 0.0 else fmt.number(k3)}\n{verdict}"
    if not np.isfinite(values).any():
        return Missing(NAME, TITLE, "no pair was measured")
    count = read_number(matrix.get("num_sequences")).value
    told = "" if count is None else f" (n = {fmt.plural(int(count), 'response')} a sampler)"

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, sources, readers, values, words)

    return Plot(NAME, f"{TITLE}{told}", _caption(sources, readers, values), 1.5 + 0.75 * len(sources), draw)


def _caption(sources: list[str], readers: list[str], values: np.ndarray) -> str:
    row, column = np.unravel_index(int(np.nanargmax(values)), values.shape)
    worst = float(values[row, column])
    if worst == 0.0:
        return "Every pair agrees exactly on every token."
    return (
        f"K3 in nats a token, the row's engine sampled and the column's read; more colour is farther apart (log scale). "
        f"Farthest: {readers[column]} on the tokens of {sources[row]}, {fmt.number(worst)}."
    )


def _draw(
    figure: SubFigure,
    palette: Palette,
    sources: list[str],
    readers: list[str],
    values: np.ndarray,
    words: list[list[str]],
) -> None:
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    panel = figure.subplots()
    tone = to_rgb(palette.raster[1])
    shades = LinearSegmentedColormap.from_list("apart", [(*tone, 0.06), (*tone, 0.85)])
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (1.0, 10.0)
    # An exact pair has the least colour there is; one decade below the smallest, so that the smallest has some.
    logs = np.log10(np.where(values > 0, values, low / 10))
    panel.pcolormesh(
        np.arange(len(readers) + 1) - 0.5,
        np.arange(len(sources) + 1) - 0.5,
        np.where(np.isfinite(values), logs, math.nan),
        cmap=shades,
        vmin=math.log10(low) - 1,
        vmax=max(math.log10(high), math.log10(low) + 1),
        rasterized=True,
        linewidth=0,
        edgecolors="none",
    )
    for row, column in np.ndindex(values.shape):
        text = words[row][column] or "-"
        panel.text(column, row, text, ha="center", va="center", fontsize=9.5, color=palette.foreground)
    panel.grid(visible=False)
    panel.set_xticks(range(len(readers)), readers, fontsize=9.5)
    panel.set_yticks(range(len(sources)), sources, fontsize=9.5)
    panel.invert_yaxis()
    panel.tick_params(length=0)
    panel.set_xlabel("read by")
    panel.set_ylabel("sampled by")
