"""Waterfall of legs: the K3 of each step, what the steps do together, the total, and what would explain it."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import HATCHES, Palette, plain_ticks
from mismatch_probe_reports.reading import (
    Json,
    Number,
    pick,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.sections.legs import is_exact, step_name, step_role

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAME = "waterfall"
TITLE = "Legs: K3 of each step from sampler to trainer"
LOG_SCALE_SPAN = 200.0
LABEL_WIDTH = 60
# A step of 1e-17 beside one of 1e-4 would squeeze all others together; it is drawn as an arrow at the left end.
MOST_DECADES = 7.0
FILL_INDEX = {"chain": 0, "joint": 5, "total": 1, "replay": 2, "reference": 3, "floor": 4, "other": 5}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it is, its K3 with interval, and where it starts when bars are stacked."""

    label: str
    meaning: str
    role: str
    k3: Number
    exact: bool
    start: float = 0.0


def prepare(result: Json) -> Plot | Missing:
    """Read the steps and return the plot, or why there is none."""
    legs = result.get("legs")
    if reason := why_absent(legs):
        return Missing(NAME, TITLE, reason)
    legs = read_mapping(legs)
    # A step over a sample of the run is no part of the run's drift, and may be larger by orders of magnitude.
    bars = [_bar(step) for step in read_rows(legs.get("steps")) if "num_sequences" not in step]
    if not bars:
        return Missing(NAME, TITLE, "no two legs share tokens")
    floor = _floor(read_mapping(legs.get("floor")))
    chain = [bar for bar in bars if bar.role == "chain"]
    total = next((bar for bar in bars if bar.role == "total"), None)
    others = [bar for bar in bars if bar.role not in {"chain", "total"}]
    logarithmic = _needs_log(bars)
    upper = [*chain, *([total] if total else [])] if logarithmic else _stack(chain, total)
    counts = [bar.k3.n for bar in bars if bar.k3.n]
    title = TITLE + (f" (n = {fmt.plural(max(counts), 'token')})" if counts else "")

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, upper, others, floor, logarithmic=logarithmic)

    height = 1.6 + 0.52 * (len(upper) + len(others)) + (0.5 if others and upper else 0.0)
    return Plot(NAME, title, _caption(chain, total, others, floor), height, draw)


def _bar(step: Json) -> Bar:
    return Bar(
        label=step_name(step),
        meaning=read_text(step.get("meaning")),
        role=step_role(step),
        k3=pick(step, "k3"),
        exact=is_exact(step),
    )


def _floor(floor: Json) -> tuple[float, str] | None:
    value = read_number(floor.get("k3")).value
    if value is None or value <= 0 or floor.get("exact") is True:
        return None
    return value, read_text(floor.get("source"), "source not reported")


def _needs_log(bars: list[Bar]) -> bool:
    known = [abs(bar.k3.value) for bar in bars if bar.k3.value]
    return bool(known) and max(known) > LOG_SCALE_SPAN * min(known)


def _stack(chain: list[Bar], total: Bar | None) -> list[Bar]:
    """Chain the steps and close the gap to the total with a bar of its own: K3 of a sum is not the sum of K3."""
    stacked, position = [], 0.0
    for bar in chain:
        stacked.append(Bar(bar.label, bar.meaning, bar.role, bar.k3, bar.exact, position))
        position += bar.k3.value or 0.0
    if total is None:
        return stacked
    complete = all(bar.k3.value is not None for bar in chain)
    if len(chain) > 1 and complete and total.k3.value is not None and not total.exact:
        gap = total.k3.value - position
        stacked.append(
            Bar(
                "the steps together",
                "what their correlation adds or cancels",
                "joint",
                Number(gap),
                False,
                position,
            )
        )
    return [*stacked, total]


def _caption(chain: list[Bar], total: Bar | None, others: list[Bar], floor: tuple[float, str] | None) -> str:
    known = [bar for bar in chain if bar.k3.value is not None]
    if known and all(bar.exact for bar in known) and (total is None or total.exact):
        return "Every step is exact: the sides agree to the last bit, so there is nothing to explain."
    sentences = []
    if known:
        largest = max(known, key=lambda bar: bar.k3.value or 0.0)
        which = "The largest step is" if len(known) > 1 else "One step was measured,"
        sentences.append(f"{which} {largest.label}: K3 {fmt.number(largest.k3.value or 0.0)} nats per token.")
    value = total.k3.value if total else None
    if value is not None and floor is not None:
        sentences.append(f"The total is {fmt.times(value / floor[0])} the floor of {fmt.number(floor[0])}.")
    forced = next((bar for bar in others if bar.role == "replay" and "decode" in bar.label), None)
    if forced is not None and forced.k3.value is not None and value:
        change = 1.0 - forced.k3.value / value
        verb = "removes" if change >= 0 else "adds"
        sentences.append(f"Forcing the rollout's experts {verb} {fmt.percent(abs(change))} of it.")
    return " ".join(sentences) or "No step has a K3; the table of steps gives the reasons."


@dataclass(frozen=True, slots=True)
class Scale:
    """The K3 axis: linear for stacked bars, or the exponent of ten where steps differ by orders of magnitude.

    matplotlib's own logarithmic axis overflows near the ends of float64, which a broken engine's K3 can reach.
    """

    logarithmic: bool
    left: float
    right: float

    def place(self, value: float) -> float:
        """Return where a value stands; what is too small for a logarithm stands at the left end."""
        if not self.logarithmic:
            return value
        return max(math.log10(value), self.left) if value > 0 else self.left

    def start(self, bar: Bar) -> float:
        """Return where a bar starts."""
        return self.left if self.logarithmic else bar.start


def _scale(bars: list[Bar], floor: tuple[float, str] | None, *, logarithmic: bool) -> Scale:
    ends = [end for bar in bars for end in _ends(bar)] + ([floor[0]] if floor else [])
    if logarithmic:
        exponents = [math.log10(end) for end in ends if end > 0]
        least = max(min(exponents) - 0.3, max(exponents) - MOST_DECADES)
        return Scale(True, math.floor(least), max(exponents) + 0.15)
    low, high = min([0.0, *ends]), max([0.0, *ends])
    if high == low:
        return Scale(False, 0.0, 1.0)
    return Scale(False, low - (0.04 * (high - low) if low < 0 else 0.0), high + 0.04 * (high - low))


def _ends(bar: Bar) -> list[float]:
    if bar.k3.value is None:
        return []
    ends = [bar.k3.value] + [end for end in (bar.k3.low, bar.k3.high) if end is not None]
    return [bar.start, *(bar.start + end for end in ends)] if bar.start else ends


def _draw(
    figure: SubFigure,
    palette: Palette,
    upper: list[Bar],
    others: list[Bar],
    floor: tuple[float, str] | None,
    *,
    logarithmic: bool,
) -> None:
    titled = ((upper, "From sampler to trainer"), (others, "For comparison"))
    groups = [(group, title) for group, title in titled if group]
    heights = [len(group) for group, _ in groups]
    axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)
    scale = _scale([*upper, *others], floor, logarithmic=logarithmic)
    for row, (group, title) in enumerate(groups):
        panel: Axes = axes[row, 0]
        panel.set_title(title, fontweight="bold")
        panel.grid(visible=False, axis="y")
        panel.set_xlim(scale.left, scale.right)
        for position, bar in enumerate(group):
            _draw_bar(panel, palette, bar, position, scale)
        if floor is not None:
            line: dict[str, Any] = {"color": palette.foreground, "linestyle": (0, (4, 2)), "linewidth": 1.3}
            label = f"noise floor {fmt.number(floor[0])} ({_short(floor[1])})"
            panel.axvline(scale.place(floor[0]), label=label, **line)
        panel.set_yticks(range(len(group)), [_two_lines(bar) for bar in group])
        panel.tick_params(axis="y", length=0, labelsize=9.5)
        panel.set_ylim(len(group) - 0.45, -0.55)
    bottom: Axes = axes[-1, 0]
    if logarithmic:
        exponents = range(math.ceil(scale.left), math.floor(scale.right) + 1)
        shown = exponents[:: max(1, len(exponents) // 8)]
        bottom.set_xticks(list(shown), [fmt.tick(10.0**exponent) for exponent in shown])
    elif all(bar.exact for bar in (*upper, *others)):
        bottom.set_xticks([0.0], ["0"])
    else:
        plain_ticks(bottom, x=True)
    how = "log scale, side by side" if logarithmic else "steps stacked"
    bottom.set_xlabel(f"K3 (nats per token), {how}, with 95 % intervals")
    if floor is not None:
        figure.legend(*bottom.get_legend_handles_labels(), loc="outside lower left")


def _draw_bar(panel: Axes, palette: Palette, bar: Bar, position: int, scale: Scale) -> None:
    index = FILL_INDEX.get(bar.role, 5)
    beside: dict[str, Any] = {
        "transform": panel.get_yaxis_transform(),
        "va": "center",
        "ha": "left",
        "fontsize": 9.5,
    }
    if bar.exact:
        panel.text(1.01, position, "EXACT (0 on every token)", fontweight="bold", **beside)
        return
    value = bar.k3.value
    if value is None:
        reason = textwrap.fill(f"{fmt.NOT_AVAILABLE}: {bar.k3.reason}", 34, max_lines=2, placeholder=" ...")
        panel.text(1.01, position, reason, color=palette.muted, **beside)
        return
    left = scale.start(bar)
    panel.barh(
        position,
        scale.place(bar.start + value) - left,
        left=left,
        height=0.62,
        facecolor=palette.fills[index],
        edgecolor=palette.foreground,
        hatch=HATCHES[index],
        linewidth=0.8,
    )
    if scale.logarithmic and 0 < value < 10.0**scale.left:
        panel.plot(
            [scale.left], [position], color=palette.foreground, marker="<", markersize=9, clip_on=False
        )
    label = fmt.number(value)
    if bar.k3.low is not None and bar.k3.high is not None:
        ends = [scale.place(bar.start + end) for end in (bar.k3.low, bar.k3.high)]
        line: dict[str, Any] = {"color": palette.foreground, "marker": "|", "markersize": 9, "linewidth": 1.4}
        panel.plot(ends, [position, position], **line)
        label += f"  [{fmt.number(bar.k3.low)}, {fmt.number(bar.k3.high)}]"
    panel.text(1.01, position, label, **beside)


def _two_lines(bar: Bar) -> str:
    """Write a step and, below it, what it means, each cut to one line."""
    return f"{_short(bar.label)}\n{_short(bar.meaning)}" if bar.meaning else _short(bar.label)


def _short(text: str) -> str:
    """Cut a string of the result to one line of a figure."""
    return text if len(text) <= LABEL_WIDTH else f"{text[: LABEL_WIDTH - 4]} ..."
