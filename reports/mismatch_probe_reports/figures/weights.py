"""Response of each correction to the log-weight, by sign of the advantage, over this run's log-weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import LINE_STYLES, MARKERS, Palette, plain_ticks
from mismatch_probe_reports.figures.weight_data import Curve, Spread, read_curve, read_spread
from mismatch_probe_reports.reading import (
    Json,
    look_up,
    pick,
    read_mapping,
    read_number,
    read_text,
    why_absent,
)
from mismatch_probe_reports.sections.weights import method_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAME = "weights"
TITLE = "Weights: coefficient phi against log W"
HEIGHT_INCHES = 5.9
MOST_METHODS = len(LINE_STYLES)
PREFERRED = ("vespo", "gspo", "seq_tis", "geo_rs", "seq_mis", "topr", "opsm", "luspo", "k3_rs")
# Higher coefficients than this leave the panel: plain importance weights would flatten every other curve.
TOP_PHI = 6.0
# Both mean coefficients together within this of 1.
UNCHANGED = 2e-3


def prepare(result: Json) -> Plot | Missing:
    """Read the curves and return the plot, or why there is none."""
    weights = result.get("weights")
    if reason := why_absent(weights):
        return Missing(NAME, TITLE, reason)
    methods = read_mapping(weights)
    chosen = read_text(look_up(result, "recommendation", "method"))
    # The recommended method comes first, so that it is drawn whatever else is; then those that frameworks ship.
    names = sorted(methods, key=lambda name: (name != chosen, _rank(name)))
    read = (read_curve(name, read_mapping(methods[name])) for name in names)
    curves = [curve for curve in read if curve is not None and curve.over == "log_weight"]
    if not curves:
        return Missing(NAME, TITLE, "no method has a response to draw over log W")
    spread = read_spread(look_up(result, "sequence", "histogram"))
    drawn = curves[:MOST_METHODS]
    total = read_number(look_up(result, "sequence", "num_sequences")).value
    if total is None and spread is not None:
        total = float(spread.counts.sum())
    title = TITLE + (f" (n = {fmt.plural(int(total), 'sequence')}" if total else " (n not reported")
    title += f"; {len(drawn)} of {len(curves)} methods of sequences)" if len(drawn) < len(curves) else ")"

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, drawn, spread)

    scaled = {curve.label for curve in curves if curve.undisturbed() != 1.0}
    named = {name: read_mapping(methods[name]) for name in names}
    kept = {name: method for name, method in named.items() if method_label(name, method) not in scaled}
    return Plot(NAME, title, _caption(kept), HEIGHT_INCHES, draw)


def _rank(name: str) -> int:
    return PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)


def _caption(methods: dict[str, Json]) -> str:
    masses = []
    for name, method in methods.items():
        positive, negative = pick(method, "positive_mass").value, pick(method, "negative_mass").value
        if positive is not None and negative is not None:
            masses.append(
                (abs(positive - 1.0) + abs(negative - 1.0), method_label(name, method), positive, negative)
            )
    if not masses:
        return "Where the histogram is, the height of a curve is the weight that a token of this run gets."
    nearest, farthest = min(masses), max(masses)
    if farthest[0] < UNCHANGED:
        return "At this run's drift every method leaves the gradient practically as it is: all mean phi are near 1."
    sentence = (
        f"At this run's drift {nearest[1]} changes the gradient least"
        f" (mean phi {fmt.number(nearest[2])} for A > 0, {fmt.number(nearest[3])} for A < 0)"
    )
    if farthest[1] != nearest[1]:
        sentence += f" and {farthest[1]} most ({fmt.number(farthest[2])}, {fmt.number(farthest[3])})"
    return sentence + "."


def _span(curves: list[Curve], spread: Spread | None) -> tuple[float, float]:
    """Return the range of log W to show: the run's own with a margin, and 0."""
    if spread is not None:
        low, high = spread.span()
    else:
        low = min(float(curve.grid.min()) for curve in curves)
        high = max(float(curve.grid.max()) for curve in curves)
    low, high = min(low, 0.0), max(high, 0.0)
    margin = max(0.25 * (high - low), 0.05)
    return low - margin, high + margin


def _draw(figure: SubFigure, palette: Palette, curves: list[Curve], spread: Spread | None) -> None:
    rows = 2 if spread is not None else 1
    axes = figure.subplots(rows, 2, sharex=True, sharey="row", squeeze=False, height_ratios=[3.2, 1.0][:rows])
    low, high = _span(curves, spread)
    shown = [
        values[(curve.grid >= low) & (curve.grid <= high)]
        for curve in curves
        for values in (curve.positive, curve.negative)
    ]
    largest = max((float(np.nanmax(values)) for values in shown if np.isfinite(values).any()), default=1.0)
    top = min(max(1.15 * largest, 1.2), TOP_PHI)
    for column, (sign, title) in enumerate((("positive", "A > 0"), ("negative", "A < 0"))):
        panel: Axes = axes[0, column]
        panel.set_title(f"Advantage {title}", fontweight="bold")
        panel.axhline(1.0, color=palette.muted, linewidth=0.9)
        panel.axvline(0.0, color=palette.muted, linewidth=0.9)
        for index, curve in enumerate(curves):
            _draw_curve(panel, palette, curve, sign, index, (low, high), top)
        panel.set_ylim(-0.04 * top, top)
        panel.set_xlim(low, high)
        if spread is not None:
            _draw_spread(axes[1, column], palette, spread)
        axes[-1, column].set_xlabel("log W of the response (nats)")
        plain_ticks(axes[-1, column], x=True, y=True)
    axes[0, 0].set_ylabel("phi (1 = uncorrected)" + (", cut at the top" if largest > TOP_PHI else ""))
    if spread is not None:
        axes[1, 0].set_ylabel("responses")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=3)


def _draw_curve(
    panel: Axes, palette: Palette, curve: Curve, sign: str, index: int, span: tuple[float, float], top: float
) -> None:
    values: NDArray[np.float64] = getattr(curve, sign)
    # Off-scale parts are drawn just above the panel: exp(log W) has no place in device coordinates.
    heights = np.clip(values, -top, 3 * top)
    near = (curve.grid >= span[0] - (span[1] - span[0])) & (curve.grid <= span[1] + (span[1] - span[0]))
    style = LINE_STYLES[index] if curve.continuous else "none"
    spacing = max(1, int(near.sum()) // 12)
    hollow = index % 2 == 1 or not curve.continuous
    panel.plot(
        curve.grid[near],
        heights[near],
        color=palette.series[index],
        linestyle=style,
        marker=MARKERS[index],
        # Means of several token-level methods often coincide: nested outlines stay apart.
        markersize=5 if curve.continuous else 10 - 1.3 * index,
        markerfacecolor="none" if hollow else palette.series[index],
        markevery=(index * spacing // MOST_METHODS, spacing) if curve.continuous else None,
        label=curve.label,
    )


def _draw_spread(panel: Axes, palette: Palette, spread: Spread) -> None:
    widths = np.diff(spread.edges)
    if float(widths.max()) == 0.0 or np.count_nonzero(spread.counts) == 1:
        filled = int(np.argmax(spread.counts))
        centre = float(spread.edges[filled] + spread.edges[filled + 1]) / 2
        panel.vlines(centre, 0, spread.counts[filled], color=palette.foreground, linewidth=3)
    else:
        panel.stairs(
            spread.counts,
            spread.edges,
            fill=True,
            facecolor=palette.fills[0],
            edgecolor=palette.foreground,
            linewidth=0.6,
        )
    panel.set_ylim(0, float(spread.counts.max()) * 1.12)
