"""Corrections at other lengths and stalenesses: heat maps of both, lines where only lengths could be simulated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.heat_map import HeatMap, draw_heat_map
from mismatch_probe_reports.figures.style import LINE_STYLES, MARKERS, Palette
from mismatch_probe_reports.reading import Json, look_up, read_mapping, read_number, read_text, why_absent
from mismatch_probe_reports.sections.simulation import method_labels, points_of

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

NAME = "weight_extrapolation"
TITLE = "Longer and staler: what is left of the signal"
HEAT_INCHES = 6.6
LINE_INCHES = 4.6
PANELS = 4
# Drawn first where there is no room for all: what differs most between methods.
PREFERRED = (
    "vespo",
    "gspo@pi/mu",
    "seq_tis",
    "gspo",
    "token_tis",
    "icepop",
    "geo_rs",
    "cispo@pi/mu",
    "ppo_clip@pi/mu",
)
SIGNS = (("positive_mass", "Z+"), ("negative_mass", "Z-"))
Points = dict[tuple[int, int], Json]


def prepare(result: Json) -> Plot | Missing:
    """Read the points and return the plot, or why there is none."""
    simulation = result.get("simulation")
    if simulation is None:
        return Missing(NAME, TITLE, "no other length or staleness was simulated")
    if reason := why_absent(simulation):
        return Missing(NAME, TITLE, reason)
    extrapolation = read_mapping(look_up(simulation, "extrapolation"))
    points = points_of(extrapolation)
    labels = method_labels(extrapolation)
    names = _chosen(labels, points, read_text(look_up(result, "recommendation", "method")))
    if not names:
        return Missing(NAME, TITLE, "no method could be simulated at any length")
    longest = read_number(extrapolation.get("longest_measured")).value or 0.0
    counts = [read_number(point.get("num_sequences")).value or 0.0 for point in points.values()]
    low, high = (fmt.integer(bound) for bound in (min(counts), max(counts)))
    told = f"n = {low if low == high else f'{low} to {high}'} made-up responses a point"
    stale = len({staleness for _, staleness in points}) > 1
    drawn = names[:PANELS] if stale else names[: len(LINE_STYLES)]

    def draw(figure: SubFigure, palette: Palette) -> None:
        if stale:
            _heat(figure, palette, points, {name: labels[name] for name in drawn}, longest)
        else:
            _lines(figure, palette, points, {name: labels[name] for name in drawn}, longest)

    chosen = f"; {len(drawn)} of {len(labels)}" if len(drawn) < len(labels) else ""
    title = f"{TITLE} ({told}{chosen})"
    caption = _caption(points, {name: labels[name] for name in drawn}, stale=stale)
    return Plot(NAME, title, caption, HEAT_INCHES if stale else LINE_INCHES, draw)


def _chosen(labels: dict[str, str], points: Points, recommended: str) -> list[str]:
    def rank(name: str) -> tuple[bool, int]:
        return (name != recommended, PREFERRED.index(name) if name in PREFERRED else len(PREFERRED))

    known = [
        name
        for name in labels
        if any(_left(point, name, "positive_mass") is not None for point in points.values())
    ]
    return sorted(known, key=rank)


def _left(point: Json | None, name: str, key: str) -> float | None:
    return None if point is None else read_number(look_up(point, "responses", name, key)).value


def _caption(points: Points, labels: dict[str, str], *, stale: bool) -> str:
    lengths = sorted({length for length, _ in points})
    stalenesses = sorted({staleness for _, staleness in points})
    first, last = (lengths[0], stalenesses[0]), (lengths[-1], stalenesses[-1])
    last = last if last in points else max(points)
    falls = []
    for name, label in labels.items():
        ends = [_left(points.get(place), name, "positive_mass") for place in (first, last)]
        if ends[0] is not None and ends[1] is not None:
            falls.append((ends[0] - ends[1], label, ends[0], ends[1]))
    if not falls:
        return "Not every length and staleness could be simulated; the table gives the reasons."
    lost, label, before, after = max(falls)
    where = f"{fmt.integer(last[0])} tokens" + (f" and N = {last[1]}" if stale else "")
    if lost < 0.01:
        return f"At {where} none of these methods has lost more than 1 % of its positive signal."
    note = "" if stale else " Staleness was not measured: fresh weights only."
    return (
        f"At {where} {label} has lost most: Z+ falls from {fmt.number(before)} to {fmt.number(after)}.{note}"
    )


def _heat(
    figure: SubFigure, palette: Palette, points: Points, labels: dict[str, str], longest: float
) -> None:
    lengths = sorted({length for length, _ in points})
    stalenesses = sorted({staleness for _, staleness in points})
    grid = figure.subplots(2, len(labels), squeeze=False, sharex=True, sharey=True)
    for row, (key, sign) in enumerate(SIGNS):
        for column, (name, label) in enumerate(labels.items()):
            found = [[_left(points.get((length, n)), name, key) for n in stalenesses] for length in lengths]
            heat = HeatMap(
                title=f"{sign}, {fmt.clean(label)}",
                x="staleness N (updates a batch)" if row == 1 else "",
                y="tokens (* longer than measured)" if column == 0 else "",
                columns=[str(n) for n in stalenesses],
                rows=[fmt.integer(length) + ("" if length <= longest else " *") for length in lengths],
                values=np.array([[math.nan if value is None else value for value in line] for line in found]),
            )
            draw_heat_map(grid[row, column], palette, heat, (0.0, 1.0))


def _lines(
    figure: SubFigure, palette: Palette, points: Points, labels: dict[str, str], longest: float
) -> None:
    lengths = sorted({length for length, _ in points})
    grid = figure.subplots(1, 2, sharey=True, squeeze=False)
    for column, (key, sign) in enumerate(SIGNS):
        panel = grid[0, column]
        for index, (name, label) in enumerate(labels.items()):
            found = [_left(points[length, n], name, key) for length, n in sorted(points)]
            values = [math.nan if value is None else value for value in found]
            panel.plot(
                [length for length, _ in sorted(points)],
                values,
                color=palette.series[index],
                linestyle=LINE_STYLES[index],
                marker=MARKERS[index],
                markersize=5,
                markerfacecolor="none" if index % 2 else palette.series[index],
                label=fmt.clean(label),
            )
        if lengths[0] < longest < lengths[-1]:
            panel.axvline(
                longest, color=palette.muted, linewidth=1.2, linestyle=":", label="longest measured"
            )
        panel.set_xscale("log")
        panel.set_xticks(lengths, [fmt.integer(length) for length in lengths])
        panel.minorticks_off()
        panel.set_title(f"{sign}: mean phi where A {'>' if column == 0 else '<'} 0", fontweight="bold")
        panel.set_xlabel("tokens of a response")
        panel.ticklabel_format(axis="y", useOffset=False)
    grid[0, 0].set_ylim(bottom=min(0.0, grid[0, 0].get_ylim()[0]))
    grid[0, 0].set_ylabel("mean phi (1 = all of the signal)")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
