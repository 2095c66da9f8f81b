"""Distribution function of |log-ratio| over tokens, and beside it what remains above, so that the tail is visible."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import MARKERS, Palette, plain_ticks
from mismatch_probe_reports.reading import Json, look_up, read_array, read_mapping, read_number, why_absent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAME = "ecdf"
TITLE = "Distribution of |log-ratio| over tokens"
HEIGHT_INCHES = 4.6
DRAWABLE = 1e100
# 99.9 % quantile over median of |x| for a normal x: 3.2905 / 0.6745.
GAUSSIAN_SPREAD = 4.88
# From how many times that spread on the drift counts as sitting in few tokens.
WIDE = 4
# Fewer tokens do not resolve a 99.9 % quantile.
ENOUGH = 1000
MARKED = ((0.5, "median"), (0.99, "99 %"), (0.999, "99.9 %"), (1.0, "maximum"))


@dataclass(frozen=True, slots=True)
class Distribution:
    """What is drawn.

    Attributes:
        level: Share of tokens at or below [n], ascending, without the levels at which |log-ratio| is 0.
        drift: |log-ratio| in nats at each level [n], above 0.
        num_tokens: Tokens, or None.
        num_equal: Tokens whose |log-ratio| is exactly 0, or None.
        marks: Level, name and |log-ratio| of the quantiles that the caption names.
    """

    level: NDArray[np.float64]
    drift: NDArray[np.float64]
    num_tokens: int | None
    num_equal: int | None
    marks: tuple[tuple[float, str, float], ...]

    def equal_share(self) -> float | None:
        """Return the share of exactly equal tokens, or None where they were not counted."""
        return self.num_equal / self.num_tokens if self.num_tokens and self.num_equal is not None else None

    def tail(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return |log-ratio| and the share of tokens above it, as far out as single tokens resolve it.

        Shapes: [m], [m].
        """
        above = 1.0 - self.level
        kept = above > (1.0 / self.num_tokens if self.num_tokens else 0.0)
        return self.drift[kept], above[kept]


def prepare(result: Json) -> Plot | Missing:
    """Read the distribution and return the plot, or why there is none."""
    distribution = read_distribution(result)
    if isinstance(distribution, str):
        return Missing(NAME, TITLE, distribution)
    tokens = distribution.num_tokens
    title = TITLE if tokens is None else f"{TITLE} (n = {fmt.plural(tokens, 'token')})"

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, distribution)

    return Plot(NAME, title, _caption(distribution), HEIGHT_INCHES, draw)


def read_distribution(result: Json) -> Distribution | str:
    """Read the distribution, or say why there is none to draw."""
    token = result.get("token")
    if reason := why_absent(token) or why_absent(look_up(token, "ecdf")):
        return reason
    level = read_array(look_up(token, "ecdf", "levels"))
    drift = read_array(look_up(token, "ecdf", "abs_log_ratio"))
    if len(level) != len(drift) or len(level) < 2 or not _ascending(level) or not _ascending(drift):
        return "levels and values of the distribution do not fit together"
    count = read_number(look_up(token, "num_tokens")).value
    tokens = None if count is None else int(count)
    drawn = (drift > 0) & (drift < DRAWABLE)
    if not drift.any():
        who = "all tokens" if tokens is None else f"all {fmt.plural(tokens, 'token')}"
        return f"{who} agree exactly, so there is no drift to draw"
    if drawn.sum() < 2:
        return "fewer than two levels have a drift that can be drawn"
    equal = read_number(look_up(token, "by_probability", "num_exact_zero")).value
    return Distribution(
        level[drawn], drift[drawn], tokens, None if equal is None else int(equal), _marks(read_mapping(token))
    )


def _ascending(values: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(values).all() and np.all(np.diff(values) >= 0) and values[0] >= 0)


def _marks(token: Json) -> tuple[tuple[float, str, float], ...]:
    """Read the quantiles that are named, from the table of quantiles; the distribution has other levels."""
    levels = read_array(look_up(token, "quantiles", "levels"))
    values = read_array(look_up(token, "quantiles", "abs_log_ratio"))
    known = dict(zip(levels.tolist(), values.tolist(), strict=False))
    worst = read_number(token.get("max_abs_log_ratio")).value
    if worst is not None:
        known[1.0] = worst
    return tuple(
        (level, name, known[level]) for level, name in MARKED if math.isfinite(known.get(level, math.nan))
    )


def _caption(distribution: Distribution) -> str:
    said = " ".join(sentence for sentence in (_equals(distribution), _moves(distribution)) if sentence)
    named = {name: value for _, name, value in distribution.marks}
    median, high = named.get("median"), named.get("99.9 %")
    if median is None or high is None:
        return said or "The result names no quantiles of this distribution."
    if distribution.num_tokens is not None and distribution.num_tokens < ENOUGH:
        return f"{said} {fmt.plural(distribution.num_tokens, 'token')} are too few to judge the tail."
    if median == 0.0:
        return f"{said} Half of the tokens or more do not move at all: the drift sits in the others."
    if high > WIDE * GAUSSIAN_SPREAD * median:
        return (
            f"{said} That is far wider than Gaussian noise, whose 99.9 % quantile is {GAUSSIAN_SPREAD} times its "
            "median: the drift sits in few tokens, and a mean says little about them."
        )
    return f"{said} That is about as wide as Gaussian noise: the drift is spread over all tokens."


def _moves(distribution: Distribution) -> str:
    """Say how far the median token, the tail and the worst token move."""
    words = {"median": "half of the tokens move by at most", "maximum": "the worst token moves by"}
    moved = [
        f"{words.get(name, f'{name} by at most')} {fmt.number(value)}"
        for _, name, value in distribution.marks
    ]
    return f"In nats, {', '.join(moved)}." if moved else ""


def _equals(distribution: Distribution) -> str:
    """Say how many tokens do not move at all."""
    if distribution.num_equal is None or not distribution.num_tokens:
        return ""
    if distribution.num_equal == 0:
        return f"Not one of the {fmt.integer(distribution.num_tokens)} tokens is exactly equal."
    equal, all_tokens = fmt.integer(distribution.num_equal), fmt.integer(distribution.num_tokens)
    return f"{equal} of {all_tokens} tokens are exactly equal."


def _draw(figure: SubFigure, palette: Palette, distribution: Distribution) -> None:
    left, right = figure.subplots(1, 2)
    _draw_share(left, palette, distribution)
    draw_tail(right, palette, distribution)
    low, high = (
        distribution.drift[0],
        max(distribution.drift[-1], *(value for *_, value in distribution.marks), 0.0),
    )
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlim(low / 4, high * 2)
        axes.set_xlabel("|log-ratio| (nats, log scale)")
    plain_ticks(left, x=True, y=True)
    plain_ticks(right, x=True, y=True)
    handles, labels = left.get_legend_handles_labels()
    more = [pair for pair in zip(*right.get_legend_handles_labels(), strict=True) if pair[1] not in labels]
    handles += [handle for handle, _ in more]
    labels += [label for _, label in more]
    figure.legend(handles, labels, loc="outside lower left", ncols=4)


def _draw_share(axes: Axes, palette: Palette, distribution: Distribution) -> None:
    axes.set_title("share of tokens at or below (F)")
    equal, first = distribution.equal_share(), float(distribution.drift[0])
    start = [] if equal is None else [equal]
    axes.plot(
        [first] * len(start) + distribution.drift.tolist(),
        start + distribution.level.tolist(),
        color=palette.series[0],
    )
    if equal:
        # A log axis has no 0: the equal tokens are the step from which the curve starts.
        axes.fill_between(
            [first / 4, first],
            [equal, equal],
            facecolor=palette.fills[0],
            edgecolor=palette.foreground,
            hatch="//",
            linewidth=0.8,
        )
        axes.annotate(
            f"exactly equal (0): {fmt.percent(equal)}",
            (first, equal),
            xytext=(6, -6),
            textcoords="offset points",
            va="top",
        )
    for index, (level, name, value) in enumerate(distribution.marks):
        if 0 < value < DRAWABLE:
            axes.plot([value], [level], label=f"{name}: {fmt.number(value)}", **_mark(palette, index))
    axes.set_ylim(0, 1.03)
    axes.set_ylabel("share of tokens")


def draw_tail(axes: Axes, palette: Palette, distribution: Distribution) -> None:
    """Draw the share of tokens above each |log-ratio|, with the named quantiles."""
    axes.set_title("share of tokens above (1 - F, log scale)")
    drift, above = distribution.tail()
    axes.plot(drift, above, color=palette.series[0])
    for index, (level, name, value) in enumerate(distribution.marks):
        if not 0 < value < DRAWABLE:
            continue
        share = 1.0 - level
        if level == 1.0:
            if distribution.num_tokens is None:
                continue
            # No token lies above the largest: it stands at one token's share.
            share = 1.0 / distribution.num_tokens
            if len(drift):
                axes.plot([drift[-1], value], [above[-1], share], color=palette.series[0], linestyle=":")
        elif distribution.num_tokens and share * distribution.num_tokens < 1:
            continue
        axes.plot([value], [share], label=f"{name}: {fmt.number(value)}", **_mark(palette, index))
    axes.set_yscale("log")
    axes.set_ylabel("share of tokens (log scale)")


def _mark(palette: Palette, index: int) -> dict[str, Any]:
    return {
        "color": palette.foreground,
        "marker": MARKERS[index],
        "markerfacecolor": palette.surface,
        "markersize": 7,
        "linestyle": "none",
    }
