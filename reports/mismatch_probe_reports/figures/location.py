"""Accumulated and local error by layer, and every module of every layer against what rounding does to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.heat_map import HeatMap, draw_heat_map
from mismatch_probe_reports.figures.style import LINE_STYLES, MARKERS, Palette, plain_ticks
from mismatch_probe_reports.reading import Json, read_mapping, read_number, read_rows, read_text, why_absent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAME = "location"
TITLE = "Layers: error that has accumulated, and error of each layer's own"
MOST_COLOUR = 6.0


def prepare(result: Json) -> Plot | Missing:
    """Read the location and return the plot, or why there is none."""
    raw = result.get("location")
    if raw is None:
        return Missing(NAME, TITLE, "hidden states were not compared (mismatch-probe locate RUN)")
    if reason := why_absent(raw):
        return Missing(NAME, TITLE, reason)
    location = read_mapping(raw)
    drifts, units = read_rows(location.get("layers")), read_rows(location.get("units"))
    whole = [unit for unit in units if unit.get("unit") == "layer"]
    if not drifts or not whole:
        return Missing(NAME, TITLE, "no layer could be compared")
    count = read_number(location.get("num_tokens")).value
    told = "" if count is None else f" (n = {fmt.plural(int(count), 'token')})"
    first = read_mapping(location.get("first"))
    names = list(
        dict.fromkeys(read_text(unit.get("unit")) for unit in units if unit.get("layer") is not None)
    )

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, drifts, units, whole, first, names)

    caption = (
        f"{read_text(location.get('sentence'))} Left: both sides by themselves; errors of earlier layers are carried on. "
        "Right: each layer fed with the rollout engine's own input. Below: each module likewise, in times of what "
        "rounding does to it."
    )
    return Plot(NAME, TITLE + told, caption, 3.1 + 0.5 + 0.3 * len(names), draw)


def _draw(
    figure: SubFigure,
    palette: Palette,
    drifts: list[Json],
    units: list[Json],
    whole: list[Json],
    first: Json,
    names: list[str],
) -> None:
    parts: Any = figure.subfigures(2, 1, height_ratios=(3.1, 0.5 + 0.3 * len(names)))
    above, below = parts
    left, right = above.subplots(1, 2, sharex=True)
    marked = read_number(first.get("layer")).value
    for panel, rows, key, title in (
        (left, drifts, "accumulated", "accumulated"),
        (right, whole, "local", "local: this layer alone"),
    ):
        _lines(panel, palette, rows, key)
        panel.set_title(title, fontsize=10.5, pad=5)
        panel.set_xlabel("layer")
        if marked is not None:
            panel.axvline(marked, color=palette.series[1], linewidth=1.4, linestyle=":", label="named")
        panel.legend(fontsize=8.5, loc="best")
    left.set_ylabel("relative error")
    _heat(below.subplots(), palette, units, names, first)


def _lines(panel: Axes, palette: Palette, rows: list[Json], key: str) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator

    layers = [read_number(row.get("layer")).value or 0.0 for row in rows]
    for index, (name, label) in enumerate(((key, "between the sides"), ("rounding", "by rounding alone"))):
        values = [read_number(row.get(name)).value for row in rows]
        panel.plot(
            layers,
            [math.nan if value is None or value <= 0 else value for value in values],
            color=palette.series[index] if index == 0 else palette.muted,
            linestyle=LINE_STYLES[index],
            marker=MARKERS[index],
            markersize=4.5,
            label=label,
        )
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    plain_ticks(panel, y=True)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _heat(panel: Axes, palette: Palette, units: list[Json], names: list[str], first: Json) -> None:
    layers = sorted(
        {int(layer) for unit in units if (layer := read_number(unit.get("layer")).value) is not None}
    )
    rows = names[::-1]
    values = np.full((len(rows), len(layers)), math.nan)
    marked = []
    for unit in units:
        layer, name = read_number(unit.get("layer")).value, read_text(unit.get("unit"))
        if layer is None or name not in rows:
            continue
        place = (rows.index(name), layers.index(int(layer)))
        over = read_number(unit.get("over_rounding")).value
        values[place] = 0.0 if unit.get("exact") is True else math.nan if over is None else over
        if (layer, name) == (read_number(first.get("layer")).value, read_text(first.get("unit"))):
            marked.append(place)
    heat = HeatMap(
        title="local error in times of rounding (0: equal in every bit)",
        x="layer",
        y="",
        columns=[str(layer) for layer in layers],
        rows=rows,
        values=values,
        marked=marked,
    )
    draw_heat_map(panel, palette, heat, (0.0, MOST_COLOUR))
