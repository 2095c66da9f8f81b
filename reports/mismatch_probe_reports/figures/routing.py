"""Routing agreement by layer, how many layers differ per token, and what each layer's routing explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import HATCHES, LINE_STYLES, MARKERS, Palette, plain_ticks
from mismatch_probe_reports.reading import (
    Json,
    pick,
    read_array,
    read_mapping,
    read_number,
    read_rows,
    why_absent,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAME = "routing"
TITLE = "Routing: agreement of the experts by layer"
HEIGHT_INCHES = 4.6
EXPLAINED_INCHES = 2.9
MEASURES = (
    ("set_agreement", "same set of experts"),
    ("jaccard", "Jaccard overlap"),
    ("top1_agreement", "same top-1 expert"),
)


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of agreement by layer: layer numbers, shares in 0..1 and interval ends (NaN where none), all [n]."""

    label: str
    layer: NDArray[np.float64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def prepare(result: Json) -> Plot | Missing:
    """Read agreement by layer and return the plot, or why there is none."""
    routing = result.get("routing")
    if reason := why_absent(routing):
        return Missing(NAME, TITLE, reason)
    routing = read_mapping(routing)
    layers = read_rows(routing.get("layers"))
    measures = [measure for key, label in MEASURES if (measure := _measure(layers, key, label)) is not None]
    if not measures:
        return Missing(NAME, TITLE, "no layer has an agreement")
    flips = read_array(routing.get("flipped_layers_histogram"))
    flips = flips if np.isfinite(flips).all() and flips.any() else np.array([])
    tokens = read_number(routing.get("num_tokens")).value
    title = TITLE + (
        f" (n = {fmt.plural(int(tokens), 'token')})" if tokens is not None else " (n not reported)"
    )

    explained = _explained(routing)
    resolved = read_mapping(read_mapping(routing.get("replay")).get("by_layer")).get("resolved") is True

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, measures, flips, explained)

    height = HEIGHT_INCHES + (EXPLAINED_INCHES if explained else 0.0)
    caption = " ".join(
        part
        for part in (_caption(routing, measures[0]), _explained_sentence(explained, resolved=resolved))
        if part
    )
    return Plot(NAME, title, caption, height, draw)


def _explained(routing: Json) -> list[Measure]:
    """Read what each layer explains alone, and what is lost without it."""
    layers = read_rows(read_mapping(read_mapping(routing.get("replay")).get("by_layer")).get("layers"))
    named = (("alone", "replayed alone"), ("last", "lost when only it is not replayed"))
    return [measure for key, label in named if (measure := _measure(layers, key, label)) is not None]


def _explained_sentence(explained: list[Measure], *, resolved: bool) -> str:
    if not explained:
        return ""
    best = int(np.argmax(explained[0].value))
    share = fmt.percent(float(explained[0].value[best]))
    bounded = "" if resolved else "; too few sequences to say that it is the first"
    return f"Replayed alone, layer {explained[0].layer[best]:.0f} explains most: {share} of the K3{bounded}."


def _measure(layers: list[Json], key: str, label: str) -> Measure | None:
    rows = []
    for position, layer in enumerate(layers):
        number = pick(layer, key)
        if number.value is None:
            continue
        index = read_number(layer.get("layer")).value
        low, high = (np.nan if end is None else end for end in (number.low, number.high))
        rows.append((position if index is None else index, number.value, low, high))
    if not rows:
        return None
    columns = np.array(rows, dtype=np.float64).T
    return Measure(label, *columns)


def _caption(routing: Json, measure: Measure) -> str:
    worst = int(np.argmin(measure.value))
    if float(measure.value[worst]) == 1.0:
        return "Every token takes the same experts in every layer: routing explains none of the drift."
    sentence = f"Agreement is lowest in layer {measure.layer[worst]:.0f} ({fmt.percent(float(measure.value[worst]))})"
    any_flip, mean = pick(routing, "token_any_flip_rate").value, pick(routing, "mean_flipped_layers").value
    if any_flip is not None and mean is not None:
        sentence += (
            f"; {fmt.percent(any_flip)} of tokens differ somewhere, {fmt.number(mean)} layers on average"
        )
    return sentence + "."


def _draw(
    figure: SubFigure,
    palette: Palette,
    measures: list[Measure],
    flips: NDArray[np.float64],
    explained: list[Measure],
) -> None:
    above, below = figure, None
    if explained:
        parts: Any = figure.subfigures(2, 1, height_ratios=[HEIGHT_INCHES, EXPLAINED_INCHES], hspace=0.03)
        above, below = parts
    if len(flips):
        by_layer, per_token = above.subplots(1, 2, width_ratios=[2.1, 1.0])
        _draw_flips(per_token, palette, flips)
    else:
        by_layer = above.subplots()
    _draw_measures(by_layer, palette, measures)
    above.legend(*by_layer.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    if below is not None:
        panel = below.subplots()
        _draw_explained(panel, palette, explained)
        below.legend(*panel.get_legend_handles_labels(), loc="outside lower left", ncols=2)


def _draw_explained(panel: Axes, palette: Palette, explained: list[Measure]) -> None:
    from matplotlib.ticker import MaxNLocator

    width = 0.8 / len(explained)
    for index, measure in enumerate(explained):
        place = measure.layer + width * (index - (len(explained) - 1) / 2)
        panel.bar(
            place,
            measure.value,
            width,
            facecolor=palette.fills[index],
            edgecolor=palette.foreground,
            linewidth=0.6,
            hatch=HATCHES[index + 1] if len(measure.layer) <= 24 else "",
            label=measure.label,
        )
        known = np.isfinite(measure.low) & np.isfinite(measure.high)
        panel.vlines(
            place[known], measure.low[known], measure.high[known], color=palette.foreground, linewidth=1.3
        )
    panel.axhline(0.0, color=palette.muted, linewidth=0.9)
    panel.set_title("What each layer's routing explains of the K3", fontweight="bold")
    panel.set_xlabel("layer of the model")
    panel.set_ylabel("share of the K3")
    panel.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    plain_ticks(panel, x=True, y=True)


def _draw_measures(panel: Axes, palette: Palette, measures: list[Measure]) -> None:
    from matplotlib.ticker import MaxNLocator

    lowest = 1.0
    # Beside each other within a layer, so that intervals of nearly equal measures stay apart.
    shift = 0.09 if max(len(measure.layer) for measure in measures) <= 24 else 0.0
    for index, measure in enumerate(measures):
        place = measure.layer + shift * (index - (len(measures) - 1) / 2)
        below = np.nan_to_num(np.maximum(measure.value - measure.low, 0.0))
        above = np.nan_to_num(np.maximum(measure.high - measure.value, 0.0))
        panel.errorbar(
            place,
            measure.value,
            yerr=np.stack([below, above]) if (below + above).any() else None,
            color=palette.series[index],
            linestyle=LINE_STYLES[index],
            marker=MARKERS[index],
            markersize=5,
            markerfacecolor=palette.series[index] if index % 2 == 0 else palette.surface,
            capsize=2.5,
            elinewidth=1.1,
            label=measure.label,
        )
        lowest = min(lowest, float((measure.value - below).min()))
    room = max(1.0 - lowest, 0.01)
    panel.set_ylim(1.0 - 1.08 * room, 1.0 + 0.06 * room)
    panel.set_title("By layer", fontweight="bold")
    panel.set_xlabel("layer of the model")
    panel.set_ylabel("share of tokens that agree (Jaccard: mean)")
    panel.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    plain_ticks(panel, x=True, y=True)


def _draw_flips(panel: Axes, palette: Palette, flips: NDArray[np.float64]) -> None:
    from matplotlib.ticker import MaxNLocator

    last = int(np.flatnonzero(flips)[-1])
    shares = flips[: last + 1] / flips.sum()
    panel.bar(
        np.arange(last + 1),
        shares,
        0.8,
        facecolor=palette.fills[0],
        edgecolor=palette.foreground,
        linewidth=0.6,
        hatch="//" if last < 40 else "",
    )
    panel.set_title("Flipped layers per token", fontweight="bold")
    panel.set_xlabel("layers with another set of experts")
    panel.set_ylabel("share of tokens")
    panel.set_xlim(-0.7, max(last, 3) + 0.7)
    panel.set_ylim(0, float(shares.max()) * 1.1)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    plain_ticks(panel, x=True, y=True)
