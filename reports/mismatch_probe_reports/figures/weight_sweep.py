"""Corrections along their hyperparameters: a heat map for two of them, lines for one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.heat_map import HeatMap, draw_heat_map
from mismatch_probe_reports.figures.style import LINE_STYLES, MARKERS, Palette
from mismatch_probe_reports.reading import (
    Json,
    look_up,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAME = "weight_sweep"
TITLE = "Hyperparameters: what each setting leaves of this run's signal"
MOST_COLUMNS = 3
MOST_PANELS = 9
ROW_INCHES = 3.0
QUANTITIES = {
    "positive_mass": "Z+",
    "negative_mass": "Z-",
    "kept_fraction": "share of tokens kept",
    "ess": "ESS",
    "mean": "mean phi",
}
LINES = ("mean", "ess", "kept_fraction")


@dataclass(frozen=True, slots=True)
class Swept:
    """One sweep that can be drawn.

    Attributes:
        label: Of the method.
        keys: Its one or two hyperparameters.
        values: Theirs, in the order of the sweep.
        defaults: Where each default lies among them, None where it does not.
        points: One record a setting, the last hyperparameter varying fastest.
    """

    label: str
    keys: tuple[str, ...]
    values: tuple[list[object], ...]
    defaults: tuple[int | None, ...]
    points: list[Json]

    def quantity(self) -> str:
        """What the panel shows: what these hyperparameters act on."""
        if all(key.endswith("_pos") for key in self.keys):
            return "positive_mass"
        if all(key.endswith("_neg") for key in self.keys):
            return "negative_mass"
        kept = self.numbers("kept_fraction")
        return "kept_fraction" if np.nanmax(kept) > np.nanmin(kept) else "mean"

    def numbers(self, key: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """One quantity of every setting, float64 [points]; NaN where it cannot be had."""
        found = (read_number(point.get(key)).value for point in self.points)
        return np.array([math.nan if value is None else value for value in found])


def prepare(result: Json) -> Plot | Missing:
    """Read the sweeps and return the plot, or why there is none."""
    simulation = result.get("simulation")
    if simulation is None:
        return Missing(NAME, TITLE, "no sweep was simulated")
    if reason := why_absent(simulation):
        return Missing(NAME, TITLE, reason)
    rows = read_rows(look_up(simulation, "sweeps"))
    sweeps = [sweep for raw in rows if (sweep := read_sweep(raw)) is not None]
    if not sweeps:
        return Missing(NAME, TITLE, "no sweep of one or two hyperparameters was simulated")
    drawn = sweeps[:MOST_PANELS]
    count = read_number(rows[0].get("num_sequences")).value
    told = "n = not reported" if count is None else f"n = {fmt.plural(int(count), 'response')}"
    title = f"{TITLE} ({told}{f'; {len(drawn)} of {len(rows)} sweeps' if len(drawn) < len(rows) else ''})"
    columns = 2 if len(drawn) in (1, 2, 4) else MOST_COLUMNS
    lines = math.ceil(len(drawn) / columns)

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, drawn, lines, columns)

    return Plot(NAME, title, _caption(drawn), lines * ROW_INCHES + 0.2, draw)


def read_sweep(raw: Json) -> Swept | None:
    """Read a sweep; None where it has more than two hyperparameters or its points do not fit its grid."""
    grid = {str(key): read_list(values) for key, values in read_mapping(raw.get("grid")).items()}
    points = read_rows(raw.get("points"))
    sizes = [len(values) for values in grid.values()]
    if len(grid) not in (1, 2) or math.prod(sizes) != len(points) or not points:
        return None
    defaults = read_mapping(raw.get("defaults"))
    swept = Swept(
        label=read_text(raw.get("label"), read_text(raw.get("method"))),
        keys=tuple(grid),
        values=tuple(grid.values()),
        defaults=tuple(
            values.index(defaults.get(key)) if defaults.get(key) in values else None
            for key, values in grid.items()
        ),
        points=points,
    )
    return swept if np.isfinite(swept.numbers("mean")).any() else None


def _caption(sweeps: list[Swept]) -> str:
    said = []
    for sweep in sweeps:
        key = sweep.quantity()
        numbers = sweep.numbers(key)
        if np.isfinite(numbers).any():
            low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
            said.append(
                (high - low, f"{sweep.label} ({QUANTITIES[key]} {fmt.number(low)} to {fmt.number(high)})")
            )
    _, most = max(said)
    return f"Outlined: the default. The settings of {most} matter most here; more colour is more signal left."


def _draw(figure: SubFigure, palette: Palette, sweeps: list[Swept], lines: int, columns: int) -> None:
    grid = figure.subplots(lines, columns, squeeze=False)
    for index, panel in enumerate(grid.flat):
        if index >= len(sweeps):
            panel.set_visible(False)
        elif len(sweeps[index].keys) == 1:
            _lines(panel, palette, sweeps[index])
        else:
            _heat(panel, palette, sweeps[index])


def _heat(panel: Axes, palette: Palette, sweep: Swept) -> None:
    rows, columns = (len(values) for values in sweep.values)
    key = sweep.quantity()
    values = sweep.numbers(key).reshape(rows, columns)
    row, column = sweep.defaults
    heat = HeatMap(
        title=f"{fmt.clean(sweep.label)}: {QUANTITIES[key]}",
        x=fmt.clean(sweep.keys[1]),
        y=fmt.clean(sweep.keys[0]),
        columns=[fmt.scalar(value) for value in sweep.values[1]],
        rows=[fmt.scalar(value) for value in sweep.values[0]],
        values=values,
        marked=[] if row is None or column is None else [(row, column)],
    )
    known = values[np.isfinite(values)]
    draw_heat_map(panel, palette, heat, (0.0, max(1.0, float(known.max()) if known.size else 1.0)))


def _lines(panel: Axes, palette: Palette, sweep: Swept) -> None:
    places = np.arange(len(sweep.values[0]))
    for index, key in enumerate(LINES):
        panel.plot(
            places,
            sweep.numbers(key),
            color=palette.series[index],
            linestyle=LINE_STYLES[index],
            marker=MARKERS[index],
            markersize=5,
            label=QUANTITIES[key],
        )
    if sweep.defaults[0] is not None:
        panel.axvline(sweep.defaults[0], color=palette.muted, linewidth=1.2, linestyle=":", label="default")
    panel.set_xticks(places, [fmt.scalar(value) for value in sweep.values[0]], fontsize=9)
    panel.set_title(fmt.clean(sweep.label), fontsize=10.5, pad=5)
    panel.set_xlabel(fmt.clean(sweep.keys[0]))
    panel.ticklabel_format(axis="y", useOffset=False)
    panel.legend(fontsize=8.5, loc="best")
