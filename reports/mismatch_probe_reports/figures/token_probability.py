"""Token drift against token probability: a two-dimensional histogram with the median of each column."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import Palette, plain_ticks
from mismatch_probe_reports.reading import (
    Json,
    look_up,
    read_array,
    read_list,
    read_mapping,
    read_number,
    why_absent,
)

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

NAME = "token_probability"
TITLE = "Token drift against token probability"
HEIGHT_INCHES = 4.9
MIN_COLUMN = 5


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of tokens.

    Shapes: probability edges [nx + 1], edges of log10 |log-ratio| [ny + 1], counts [nx, ny].
    """

    probability: NDArray[np.float64]
    log10_drift: NDArray[np.float64]
    counts: NDArray[np.float64]

    def medians(self) -> NDArray[np.float64]:
        """Return the median log10 |log-ratio| of each column, NaN where fewer than five tokens are in it.

        Shapes: [nx].
        """
        medians = np.full(len(self.counts), math.nan)
        for column, counts in enumerate(self.counts):
            total = counts.sum()
            if total < MIN_COLUMN:
                continue
            cumulated = np.concatenate([[0.0], np.cumsum(counts)])
            medians[column] = np.interp(total / 2, cumulated, self.log10_drift)
        return medians


def prepare(result: Json) -> Plot | Missing:
    """Read the histogram and return the plot, or why there is none."""
    token = result.get("token")
    if reason := why_absent(token):
        return Missing(NAME, TITLE, reason)
    raw = look_up(token, "by_probability")
    if reason := why_absent(raw):
        return Missing(NAME, TITLE, reason)
    zeros = int(read_number(look_up(raw, "num_exact_zero")).value or 0)
    histogram = read_histogram(read_mapping(raw))
    if histogram is None:
        return Missing(NAME, TITLE, "edges and counts of the histogram do not fit together")
    drawn = int(histogram.counts.sum())
    if drawn == 0:
        equal = f"all {fmt.plural(zeros, 'token')} agree exactly" if zeros else "the histogram is empty"
        return Missing(NAME, TITLE, f"{equal}, so there is no drift to draw")
    title = f"{TITLE} (n = {fmt.plural(drawn, 'token')}"
    title += f"; {fmt.integer(zeros)} exactly equal ones not drawn)" if zeros else ")"

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, histogram)

    return Plot(NAME, title, _caption(histogram), HEIGHT_INCHES, draw)


def read_histogram(raw: Json) -> Histogram | None:
    """Read edges and counts; None where they do not fit together.

    Probability edges may come as probabilities or as their log10 (then none is above 0). Counts may come with the
    probability first, as numpy writes them, or second.
    """
    x, y = read_array(raw.get("x_edges")), read_array(raw.get("y_edges"))
    rows = [read_array(row) for row in read_list(raw.get("counts"))]
    if len(x) < 2 or len(y) < 2 or not rows or len({len(row) for row in rows}) != 1:
        return None
    counts = np.nan_to_num(np.stack(rows))
    if counts.shape != (len(x) - 1, len(y) - 1):
        counts = counts.T
    ordered = bool(np.all(np.diff(x) > 0) and np.all(np.diff(y) > 0))
    if counts.shape != (len(x) - 1, len(y) - 1) or not ordered:
        return None
    if x[-1] <= 0:
        x = 10.0**x
    return Histogram(x, y, counts)


def _caption(histogram: Histogram) -> str:
    medians = histogram.medians()
    known = np.flatnonzero(np.isfinite(medians))
    if len(known) < 2:
        return "Too few tokens in more than one column to say how drift depends on probability."
    rare, likely = 10.0 ** medians[known[0]], 10.0 ** medians[known[-1]]
    where = f"near probability {fmt.tick(float(f'{_centre(histogram, known[0]):.2g}'))}"
    sure = f"{fmt.tick(float(f'{_centre(histogram, known[-1]):.2g}'))}"
    comparison = (
        f"The median |log-ratio| is {fmt.number(rare)} nats {where} and {fmt.number(likely)} near {sure}"
    )
    if rare > 3 * likely:
        return f"{comparison}: unlikely tokens drift more, and they are what weights act on."
    if likely > 3 * rare:
        return (
            f"{comparison}: likely tokens drift more, which noise of the logits does not do; look for a bug."
        )
    return f"{comparison}: drift hardly depends on probability."


def _centre(histogram: Histogram, column: int) -> float:
    low, high = histogram.probability[column : column + 2]
    return math.sqrt(low * high) if _logarithmic(histogram) else (low + high) / 2


def _logarithmic(histogram: Histogram) -> bool:
    """Return whether the probability axis is spaced by factors rather than by differences."""
    edges = histogram.probability
    return bool(edges[0] > 0 and edges[-1] / edges[0] > 50)


def _draw(figure: SubFigure, palette: Palette, histogram: Histogram) -> None:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb

    axes = figure.subplots()
    counts = np.where(histogram.counts.T > 0, histogram.counts.T, np.nan)
    # One mid-tone of growing opacity reads on white, on dark and in greyscale.
    tone = to_rgb(palette.raster[0])
    shades = LinearSegmentedColormap.from_list("density", [(*tone, 0.10), (*tone, 1.0)])
    top = max(10.0, float(histogram.counts.max()))
    mesh = axes.pcolormesh(
        histogram.probability,
        histogram.log10_drift,
        counts,
        cmap=shades,
        norm=LogNorm(vmin=1.0, vmax=top),
        rasterized=True,
        linewidth=0,
        edgecolors="none",
    )
    if _logarithmic(histogram):
        axes.set_xscale("log")
    medians = histogram.medians()
    known = np.flatnonzero(np.isfinite(medians))
    centres = [_centre(histogram, int(column)) for column in known]
    axes.plot(
        centres,
        medians[known],
        color=palette.foreground,
        marker="o",
        markersize=4,
        markerfacecolor=palette.surface,
        linewidth=1.4,
        label=f"median of the column (at least {MIN_COLUMN} tokens)",
    )
    axes.set_xlabel("probability of the sampled token (geometric mean of the two sides)")
    axes.set_ylabel("|log-ratio| (nats, log scale)")
    columns = np.flatnonzero(histogram.counts.sum(axis=1))
    left, right = histogram.probability[columns[0]], histogram.probability[columns[-1] + 1]
    axes.set_xlim(min(left, right / 100) if _logarithmic(histogram) else left, right)
    filled = np.flatnonzero(histogram.counts.sum(axis=0))
    axes.set_ylim(histogram.log10_drift[filled[0]] - 0.1, histogram.log10_drift[filled[-1] + 1] + 0.1)
    whole = np.arange(math.ceil(axes.get_ylim()[0]), math.floor(axes.get_ylim()[1]) + 1)
    whole = whole[:: max(1, len(whole) // 10)]
    axes.set_yticks(whole, [fmt.tick(10.0 ** float(exponent)) for exponent in whole])
    plain_ticks(axes, x=True)
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, label="tokens per cell (log scale)")
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    plain_ticks(bar.ax, y=True)
    bar.outline.set_edgecolor(palette.muted)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left")
