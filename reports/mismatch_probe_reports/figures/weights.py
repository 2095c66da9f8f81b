"""Response of each correction to the log-weight, by sign of the advantage, over this run's log-weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import LINE_STYLES, MARKERS, Palette, plain_ticks
from mismatch_probe_reports.reading import (
    Json,
    look_up,
    pick,
    read_array,
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
DRAWABLE = 1e100
# Higher coefficients than this leave the panel: plain importance weights would flatten every other curve.
TOP_PHI = 6.0
# Both mean coefficients together within this of 1.
UNCHANGED = 2e-3


@dataclass(frozen=True, slots=True)
class Curve:
    """One method's response.

    Attributes:
        label: Name in the legend.
        log_weight: Log W in nats [n].
        positive: phi where A > 0 [n].
        negative: phi where A < 0 [n].
        continuous: True for a function of log W, False for means of this run's tokens in bins of log W.
    """

    label: str
    log_weight: NDArray[np.float64]
    positive: NDArray[np.float64]
    negative: NDArray[np.float64]
    continuous: bool


@dataclass(frozen=True, slots=True)
class Spread:
    """This run's log-weights: edges [n + 1] in nats and counts [n]."""

    edges: NDArray[np.float64]
    counts: NDArray[np.float64]


def prepare(result: Json) -> Plot | Missing:
    """Read the curves and return the plot, or why there is none."""
    weights = result.get("weights")
    if reason := why_absent(weights):
        return Missing(NAME, TITLE, reason)
    methods = read_mapping(look_up(weights, "methods"))
    chosen = read_text(look_up(result, "recommendation", "method"))
    # The recommended method comes first, so that it is drawn whatever else is.
    names = sorted(methods, key=lambda name: name != chosen)
    curves = [curve for name in names if (curve := read_curve(name, read_mapping(methods[name]))) is not None]
    if not curves:
        return Missing(NAME, TITLE, "no method has a response to draw")
    spread = read_spread(look_up(result, "sequence", "histogram"))
    drawn = curves[:MOST_METHODS]
    total = read_number(look_up(result, "sequence", "num_sequences")).value
    if total is None and spread is not None:
        total = float(spread.counts.sum())
    title = TITLE + (f" (n = {fmt.plural(int(total), 'sequence')}" if total else " (n not reported")
    title += f"; {len(drawn)} of {len(curves)} methods drawn)" if len(drawn) < len(curves) else ")"

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, drawn, spread)

    return Plot(NAME, title, _caption(result, names, methods), HEIGHT_INCHES, draw)


def read_curve(name: str, method: Json) -> Curve | None:
    """Read a method's curve, or its binned means where it is no function of log W; None where it has neither."""
    for key, continuous in (("curve", True), ("points", False)):
        raw = read_mapping(method.get(key))
        log_weight, positive, negative = (
            read_array(raw.get(part)) for part in ("log_weight", "positive", "negative")
        )
        if not len(log_weight):
            continue
        positive, negative = (
            values if len(values) == len(log_weight) else np.full(len(log_weight), np.nan)
            for values in (positive, negative)
        )
        usable = np.isfinite(log_weight) & (np.isfinite(positive) | np.isfinite(negative))
        usable &= np.abs(log_weight) < DRAWABLE
        if usable.any():
            label = method_label(name, method) + ("" if continuous else " (means of this run)")
            return Curve(label, log_weight[usable], positive[usable], negative[usable], continuous)
    return None


def read_spread(raw: object) -> Spread | None:
    """Read the histogram of log W; None where edges and counts do not fit together."""
    edges, counts = read_array(look_up(raw, "edges")), read_array(look_up(raw, "counts"))
    fits = (
        len(edges) == len(counts) + 1
        and len(counts) > 0
        and bool(np.isfinite(edges).all() and np.isfinite(counts).all())
    )
    if not fits or bool(np.any(np.diff(edges) < 0)) or np.abs(edges).max() >= DRAWABLE or not counts.any():
        return None
    return Spread(edges, counts)


def _caption(result: Json, names: list[str], methods: Json) -> str:
    masses = []
    for name in names:
        method = read_mapping(methods[name])
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
        filled = np.flatnonzero(spread.counts)
        low, high = float(spread.edges[filled[0]]), float(spread.edges[filled[-1] + 1])
    else:
        low = min(float(curve.log_weight.min()) for curve in curves)
        high = max(float(curve.log_weight.max()) for curve in curves)
    low, high = min(low, 0.0), max(high, 0.0)
    margin = max(0.25 * (high - low), 0.05)
    return low - margin, high + margin


def _draw(figure: SubFigure, palette: Palette, curves: list[Curve], spread: Spread | None) -> None:
    rows = 2 if spread is not None else 1
    axes = figure.subplots(rows, 2, sharex=True, sharey="row", squeeze=False, height_ratios=[3.2, 1.0][:rows])
    low, high = _span(curves, spread)
    shown = [
        values[(curve.log_weight >= low) & (curve.log_weight <= high)]
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
    near = (curve.log_weight >= span[0] - (span[1] - span[0])) & (
        curve.log_weight <= span[1] + (span[1] - span[0])
    )
    style = LINE_STYLES[index] if curve.continuous else "none"
    spacing = max(1, int(near.sum()) // 12)
    hollow = index % 2 == 1 or not curve.continuous
    panel.plot(
        curve.log_weight[near],
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
        panel.bar(
            spread.edges[:-1],
            spread.counts,
            widths,
            align="edge",
            facecolor=palette.fills[0],
            edgecolor=palette.foreground,
            linewidth=0.5,
        )
    panel.set_ylim(0, float(spread.counts.max()) * 1.12)
