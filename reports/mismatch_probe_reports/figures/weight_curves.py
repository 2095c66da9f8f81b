"""Small multiples: phi of every correction against the drift, with how often this run met that drift under it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mismatch_probe.simulate.families import FAMILIES
from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import Palette, plain_ticks
from mismatch_probe_reports.figures.weight_data import Curve, Spread, read_curve, read_spread
from mismatch_probe_reports.reading import Json, look_up, pick, read_mapping, read_text, why_absent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

COLUMNS = 5
ROW_INCHES = 1.55
FOOT_INCHES = 0.75
TOP = 2.2
# Half of the height is the most that a bar of the histogram takes.
BAR_SHARE = 0.45
# Share of a panel's height by which a line may pass a point; the line itself is wider.
CORNER = 0.004
# Wide enough to show the features that kernels, caps and clips have, whatever the run's own drift.
LEAST_SPAN = {"log_weight": (-2.5, 1.5), "log_ratio": (-1.6, 1.8)}
AXIS = {"log_weight": "log W of the response (nats)", "log_ratio": "log-ratio of the token (nats)"}
STYLES: tuple[tuple[str, Any], ...] = (("A > 0", "-"), ("A < 0", (0, (4, 2))))
MEANS = "markers: means of this run, where phi is no function of one number"
UNIT = {"log_weight": "responses", "log_ratio": "tokens"}


@dataclass(frozen=True, slots=True)
class CurveSheet:
    """The figure of all methods of one level.

    Attributes:
        over: "log_weight" for methods of sequences, "log_ratio" for methods of tokens.
        name: Of the figure.
        title: Of the figure.
    """

    over: str
    name: str
    title: str

    def prepare(self, result: Json) -> Plot | Missing:
        """Read the curves and return the plot, or why there is none."""
        weights = result.get("weights")
        if reason := why_absent(weights):
            return Missing(self.name, self.title, reason)
        methods = read_mapping(weights)
        ordered = [name for names in FAMILIES.values() for name in names if name in methods]
        ordered += [name for name in methods if name not in ordered]
        panels = []
        for name in ordered:
            curve = read_curve(name, read_mapping(methods[name]))
            if curve is not None and curve.over == self.over:
                panels.append((name, curve))
        if not panels:
            level = "sequences" if self.over == "log_weight" else "tokens"
            return Missing(self.name, self.title, f"no method of {level} has a response to draw")
        spread = self._spread(result, methods, [name for name, _ in panels])
        count = f"n = {fmt.integer(spread.counts.sum())} {UNIT[self.over]}" if spread else "n = not reported"
        rows = math.ceil(len(panels) / COLUMNS)
        drawn = [curve for _, curve in panels]

        def draw(figure: SubFigure, palette: Palette) -> None:
            _draw(figure, palette, drawn, spread, self.over, rows)

        caption = _caption({name: read_mapping(methods[name]) for name, _ in panels}, drawn, self.over)
        return Plot(self.name, f"{self.title} ({count})", caption, rows * ROW_INCHES + FOOT_INCHES, draw)

    def _spread(self, result: Json, methods: Json, names: list[str]) -> Spread | None:
        if self.over == "log_weight":
            return read_spread(look_up(result, "sequence", "histogram"))
        found = (read_spread(look_up(methods, name, "points")) for name in names)
        return next((spread for spread in found if spread is not None), None)


SEQUENCES = CurveSheet(
    "log_weight", "weight_curves_sequence", "Methods of sequences: phi against log W, over this run's log W"
)
TOKENS = CurveSheet(
    "log_ratio", "weight_curves_token", "Methods of tokens: phi against the log-ratio, over this run's tokens"
)


def _caption(methods: dict[str, Json], curves: list[Curve], over: str) -> str:
    masses = []
    for (name, method), curve in zip(methods.items(), curves, strict=True):
        positive, negative = pick(method, "positive_mass").value, pick(method, "negative_mass").value
        if positive is not None and negative is not None and curve.undisturbed() == 1.0:
            masses.append(
                (min(positive, negative), read_text(method.get("label"), fmt.clean(name)), positive, negative)
            )
    scale = " (log scale)" if over == "log_ratio" else ""
    said = f"Grey{scale}: how often this run met that drift; the lines above it are the weights it gets."
    if masses:
        _, label, positive, negative = min(masses)
        said += (
            f" Of these methods {label} takes away most: mean phi {fmt.number(positive)} where A > 0,"
            f" {fmt.number(negative)} where A < 0."
        )
    return said


def _span(over: str, spread: Spread | None) -> tuple[float, float]:
    low, high = LEAST_SPAN[over]
    if spread is None:
        return low, high
    first, last = spread.span()
    margin = 0.05 * (last - first)
    return min(low, first - margin), max(high, last + margin)


def _draw(
    figure: SubFigure, palette: Palette, curves: list[Curve], spread: Spread | None, over: str, rows: int
) -> None:
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    span = _span(over, spread)
    for index, panel in enumerate(grid.flat):
        if index >= len(curves):
            panel.set_visible(False)
            continue
        _panel(panel, palette, curves[index], spread, span)
        # The last row may be short: the panel above a hidden one carries the ticks.
        lowest, leftmost = index + COLUMNS >= len(curves), index % COLUMNS == 0
        panel.tick_params(labelbottom=lowest, bottom=lowest, left=leftmost)
    plain_ticks(grid[0, 0], x=True, y=True)
    figure.supxlabel(AXIS[over], fontsize=10)
    figure.supylabel("phi (1 = uncorrected)", fontsize=10)
    markers = any(not curve.continuous for curve in curves)
    figure.legend(handles=_handles(palette, markers=markers), loc="outside upper left", ncols=3)


def _handles(palette: Palette, *, markers: bool) -> list[Any]:
    """Return what the legend shows: both signs as lines, and what markers stand for where there are any."""
    from matplotlib.lines import Line2D

    handles: list[Any] = [
        Line2D([], [], color=palette.series[place], linestyle=style, linewidth=1.8, label=sign)
        for place, (sign, style) in enumerate(STYLES)
    ]
    if markers:
        look: dict[str, Any] = {
            "marker": "o",
            "markersize": 4,
            "markerfacecolor": "none",
            "linestyle": "none",
        }
        handles.append(Line2D([], [], color=palette.muted, label=MEANS, **look))
    return handles


def _corners(
    grid: NDArray[np.float64], heights: NDArray[np.float64], span: tuple[float, float]
) -> NDArray[np.bool_]:
    """Which points a line needs so that it passes the others within a fraction of its own width."""
    kept = np.zeros(len(grid), dtype=bool)
    inside = np.flatnonzero((grid >= span[0]) & (grid <= span[1]))
    if not inside.size:
        return kept
    first, last = max(int(inside[0]) - 1, 0), min(int(inside[-1]) + 1, len(grid) - 1)
    kept[[first, last]] = True
    open_spans = [(first, last)]
    while open_spans:
        low, high = open_spans.pop()
        if high - low < 2:
            continue
        between = np.interp(grid[low + 1 : high], grid[[low, high]], heights[[low, high]])
        distance = np.abs(heights[low + 1 : high] - between)
        farthest = low + 1 + int(np.nanargmax(distance)) if np.isfinite(distance).any() else high
        if farthest < high and distance[farthest - low - 1] > CORNER * TOP:
            kept[farthest] = True
            open_spans += [(low, farthest), (farthest, high)]
    return kept


def _heights(spread: Spread, over: str) -> NDArray[np.float64]:
    """Heights of the histogram: of tokens on a log scale, since nearly all lie in one bin."""
    counts = np.log1p(spread.counts) if over == "log_ratio" else spread.counts
    heights: NDArray[np.float64] = counts / counts.max() * BAR_SHARE * TOP
    return heights


def _panel(
    panel: Axes, palette: Palette, curve: Curve, spread: Spread | None, span: tuple[float, float]
) -> None:
    if spread is not None:
        # One outline instead of a bar each keeps the page small.
        panel.stairs(
            _heights(spread, curve.over), spread.edges, fill=True, facecolor=palette.fills[5], zorder=1
        )
    panel.grid(visible=False)
    panel.axhline(1.0, color=palette.muted, linewidth=0.8, zorder=2)
    panel.axvline(0.0, color=palette.muted, linewidth=0.8, zorder=2)
    scale = curve.undisturbed()
    for place, values in enumerate((curve.positive, curve.negative)):
        heights = np.clip(values / scale, -TOP, 3 * TOP)
        shown = _corners(curve.grid, heights, span) if curve.continuous else np.isfinite(heights)
        panel.plot(
            curve.grid[shown],
            heights[shown],
            color=palette.series[place],
            linestyle=STYLES[place][1] if curve.continuous else "none",
            marker=None if curve.continuous else "ov"[place],
            markersize=4,
            markerfacecolor="none",
            linewidth=1.8,
            zorder=3,
        )
    label = curve.label.removesuffix(" (means of this run)")
    panel.set_title(label if scale == 1.0 else f"{label} / {fmt.number(scale)}", fontsize=10, pad=3)
    panel.set_xlim(*span)
    panel.set_ylim(-0.05 * TOP, TOP)
