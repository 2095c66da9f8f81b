"""How drift follows flips: by their number, by the first layer that flips, and how close the flipped decisions were."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import MARKERS, Palette, plain_ticks
from mismatch_probe_reports.reading import (
    Json,
    pick,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAME = "routing_flips"
TITLE = "Routing: how drift follows flips"
HEIGHT_INCHES = 4.4
# More labels than this are left out in turn; more characters are written at a slant.
MOST_LABELS = 12
MOST_CHARACTERS = 24


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars of one panel: labels, values, interval ends (NaN where none) and how many each rests on, all [n]."""

    labels: list[str]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: NDArray[np.float64]


def prepare(result: Json) -> Plot | Missing:
    """Read drift by flips and flips by margin and return the plot, or why there is none."""
    routing = result.get("routing")
    if reason := why_absent(routing):
        return Missing(NAME, TITLE, reason)
    routing = read_mapping(routing)
    by_count = _bars(read_rows(routing.get("log_ratio_by_flips")), "k3", _count_label)
    if by_count is None or len(by_count.labels) < 2:
        return Missing(
            NAME, TITLE, "no response token was predicted across a flip, so there is no drift to compare"
        )
    by_first = _bars(read_rows(routing.get("log_ratio_by_first_flip")), "k3", _layer_label)
    by_margin = _bars(read_rows(read_mapping(routing.get("margins")).get("bins")), "flip_rate", _margin_label)
    title = f"{TITLE} (n = {fmt.plural(int(by_count.n.sum()), 'token')})"

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, by_count, by_first, by_margin)

    return Plot(NAME, title, _caption(routing, by_count, by_margin), HEIGHT_INCHES, draw)


def _bars(rows: list[Json], key: str, label: Callable[[Json], str]) -> Bars | None:
    found = []
    labels = []
    for row in rows:
        number = pick(row, key)
        if number.value is not None and number.value >= 0:
            ends = (np.nan if end is None else end for end in (number.low, number.high))
            found.append((number.value, *ends, read_number(row.get("n")).value or 0.0))
            labels.append(label(row))
    return Bars(labels, *np.array(found, dtype=np.float64).T) if found else None


def _count_label(row: Json) -> str:
    count = read_number(row.get("flips")).value
    return ("?" if count is None else str(int(count))) + ("+" if row.get("or_more") is True else "")


def _layer_label(row: Json) -> str:
    layer = read_number(row.get("layer")).value
    return "none" if layer is None else str(int(layer))


def _margin_label(row: Json) -> str:
    high = read_number(row.get("high")).value
    return "more" if high is None else fmt.number(high, 2)


def _caption(routing: Json, by_count: Bars, by_margin: Bars | None) -> str:
    sentences = []
    flipped = read_mapping(routing.get("flipped_tokens"))
    tokens, drift = pick(flipped, "share_of_tokens").value, pick(flipped, "share_of_k3").value
    if tokens is not None and drift is not None:
        sentences.append(
            f"{fmt.percent(tokens)} of response tokens are predicted across a flip; they carry {fmt.percent(drift)} "
            "of the K3."
        )
    if by_count.labels[0] == "0" and by_count.value[0] > 0:
        times = by_count.value[1] / by_count.value[0]
        sentences.append(
            f"K3 with {by_count.labels[1]} flipped is {fmt.times(float(times))} that without a flip."
        )
    if by_margin is not None:
        sentences.append(
            f"Decisions with a margin below {by_margin.labels[0]} flip at a rate of "
            f"{fmt.percent(float(by_margin.value[0]))}."
        )
    if not np.isfinite(by_count.low).all():
        sentences.append("Hollow: too few tokens for an interval.")
    return " ".join(sentences) or read_text(routing.get("reason"), "The table of flips gives the numbers.")


def _draw(
    figure: SubFigure, palette: Palette, by_count: Bars, by_first: Bars | None, by_margin: Bars | None
) -> None:
    titled = [(by_count, "Drift by flipped layers", "layers that flipped")]
    if by_first is not None:
        titled.append((by_first, "Drift by first flip", "first layer that flipped"))
    axes = figure.subplots(1, len(titled) + (by_margin is not None), squeeze=False)[0]
    for index, (panel, (bars, title, xlabel)) in enumerate(zip(axes, titled, strict=False)):
        _draw_points(panel, palette, bars, index)
        _label(panel, bars, title, xlabel, "K3 (nats per token), log scale")
    if by_margin is not None:
        _draw_rates(axes[-1], palette, by_margin)
        _label(
            axes[-1],
            by_margin,
            "Flips by how close it was",
            "margin of the router, up to",
            "share of decisions that flip",
        )


def _draw_points(panel: Axes, palette: Palette, bars: Bars, colour: int) -> None:
    """Draw values with intervals over the exponent of ten; matplotlib's own log axis overflows on broken engines."""
    place = np.flatnonzero(bars.value > 0)
    level = np.log10(bars.value[place])
    # Intervals of a few tokens span decades; the axis follows the values, and such an interval leaves it.
    bottom, top = (level.min() - 1.0, level.max() + 1.0) if level.size else (-1.0, 0.0)
    known = np.isfinite(bars.low[place]) & np.isfinite(bars.high[place]) & (bars.low[place] > 0)
    ends = [np.log10(end[place][known]) for end in (bars.low, bars.high)]
    panel.vlines(place[known], *ends, color=palette.series[colour], linewidth=1.6)
    look: dict[str, Any] = {
        "linestyle": "",
        "marker": MARKERS[colour],
        "markersize": 7,
        "color": palette.series[colour],
    }
    panel.plot(place[known], level[known], **look)
    panel.plot(place[~known], level[~known], markerfacecolor=palette.surface, **look)
    panel.set_ylim(bottom, top)
    panel.set_xlim(-0.6, len(bars.labels) - 0.4)
    decades = range(math.ceil(bottom), math.floor(top) + 1)
    shown = decades[:: max(1, len(decades) // 8)]
    panel.set_yticks(list(shown), [fmt.tick(10.0**decade) for decade in shown])


def _draw_rates(panel: Axes, palette: Palette, bars: Bars) -> None:
    panel.bar(
        np.arange(len(bars.labels)),
        bars.value,
        0.78,
        facecolor=palette.fills[2],
        edgecolor=palette.foreground,
        linewidth=0.6,
        hatch="//",
    )
    panel.set_ylim(0.0, 1.08 * float(bars.value.max()) or 1.0)
    plain_ticks(panel, y=True)


def _label(panel: Axes, bars: Bars, title: str, xlabel: str, ylabel: str) -> None:
    step = -(-len(bars.labels) // MOST_LABELS)
    shown = bars.labels[::step]
    slanted = sum(map(len, shown)) > MOST_CHARACTERS
    panel.set_xticks(
        range(0, len(bars.labels), step),
        shown,
        rotation=45 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor",
    )
    panel.set_title(title, fontweight="bold")
    panel.set_xlabel(xlabel)
    panel.set_ylabel(ylabel)
    panel.grid(visible=False, axis="x")
