"""Drift, k-hat and flips of many runs against the step of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import Palette, plain_ticks
from mismatch_probe_reports.reading import Json, Number, look_up, pick, read_number, read_rows, read_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAME = "history"
TITLE = "Drift over training"
VERDICTS = (("pass", "o", 2), ("drift", "v", 1), ("inconclusive", "s", 5))


def prepare(history: Json) -> Plot | Missing:
    """Read the history and return the plot, or why there is none."""
    rows = read_rows(history.get("rows"))
    if not any((pick(row, "k3").value or 0.0) > 0 for row in rows):
        return Missing(NAME, TITLE, "no run has a K3 above 0")
    panels = (
        1
        + any(_k_hat(row).value is not None for row in rows)
        + any(_flips(row).value is not None for row in rows)
    )
    basis = read_text(history.get("basis"))

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, rows, panels, basis)

    title = f"{TITLE} (n = {fmt.plural(len(rows), 'run')})"
    return Plot(NAME, title, read_text(history.get("sentence")), 1.0 + 1.9 * panels, draw)


def _k_hat(row: Json) -> Number:
    return read_number(look_up(row, "k_hat", "value"))


def _flips(row: Json) -> Number:
    return read_number(row.get("flip_rate"))


def _draw(figure: SubFigure, palette: Palette, rows: Sequence[Json], panels: int, basis: str) -> None:
    grid = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    steps = _steps(rows, basis)
    _draw_k3(grid[0], palette, rows, steps)
    place = 1
    if any(_k_hat(row).value is not None for row in rows):
        _draw_k_hat(grid[place], palette, rows, steps)
        place += 1
    if place < panels:
        _draw_flips(grid[place], palette, rows, steps)
    changed = [step for step, row in zip(steps, rows, strict=True) if row.get("changed")]
    for axes in grid:
        for number, step in enumerate(changed):
            label = "settings or versions changed" if number == 0 else None
            axes.axvline(
                step,
                color=palette.muted,
                linestyle=":",
                linewidth=1.2,
                label=label if axes is grid[0] else None,
            )
    grid[-1].set_xlabel({"time": "hours since the first run"}.get(basis, "step"))
    plain_ticks(grid[-1], x=True)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)


def _steps(rows: Sequence[Json], basis: str) -> list[float]:
    steps = [read_number(row.get("step")).value or 0.0 for row in rows]
    return [(step - steps[0]) / 3600 for step in steps] if basis == "time" else steps


def _draw_k3(axes: Axes, palette: Palette, rows: Sequence[Json], steps: Sequence[float]) -> None:
    known = [
        (step, pick(row, "k3"), read_text(row.get("verdict"))) for step, row in zip(steps, rows, strict=True)
    ]
    drawn = [(step, k3, verdict) for step, k3, verdict in known if k3.value is not None and k3.value > 0]
    axes.plot(
        [step for step, *_ in drawn],
        [k3.value or 0.0 for _, k3, _ in drawn],
        color=palette.muted,
        linewidth=1.0,
    )
    for step, k3, _ in drawn:
        if k3.low is not None and k3.high is not None and k3.low > 0:
            axes.plot([step, step], [k3.low, k3.high], color=palette.foreground, linewidth=1.1, marker="_")
    for verdict, marker, colour in VERDICTS:
        points = [(step, k3.value or 0.0) for step, k3, found in drawn if found == verdict]
        if points:
            axes.plot(
                *zip(*points, strict=True), marker=marker, linestyle="none", markersize=8, color=palette.series[colour],
                markeredgecolor=palette.foreground, label=verdict,
            )  # fmt: skip
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    # Runs of one training often lie within a decade, which would have a single tick.
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.set_ylabel("K3 a token (nats)")
    plain_ticks(axes, y=True)


def _draw_k_hat(axes: Axes, palette: Palette, rows: Sequence[Json], steps: Sequence[float]) -> None:
    points = [
        (step, value, read_number(look_up(row, "k_hat", "good_k")).value)
        for step, row in zip(steps, rows, strict=True)
        if (value := _k_hat(row).value) is not None
    ]
    axes.plot(
        [p[0] for p in points],
        [p[1] for p in points],
        color=palette.series[0],
        marker="o",
        label="k-hat of W",
    )
    bars = [(step, good) for step, _, good in points if good is not None]
    if bars:
        axes.plot(
            *zip(*bars, strict=True), color=palette.foreground, linestyle="--", label="most that n allows"
        )
    axes.set_ylabel("k-hat of W")
    axes.legend(loc="best", fontsize=9)
    plain_ticks(axes, y=True)


def _draw_flips(axes: Axes, palette: Palette, rows: Sequence[Json], steps: Sequence[float]) -> None:
    points = [
        (step, _flips(row)) for step, row in zip(steps, rows, strict=True) if _flips(row).value is not None
    ]
    axes.plot(
        [step for step, _ in points],
        [100 * (flip.value or 0.0) for _, flip in points],
        color=palette.series[3],
        marker="D",
    )
    for step, flip in points:
        if flip.low is not None and flip.high is not None:
            axes.plot(
                [step, step],
                [100 * flip.low, 100 * flip.high],
                color=palette.foreground,
                linewidth=1.1,
                marker="_",
            )
    axes.set_ylabel("tokens with a\nflipped expert (%)")
    plain_ticks(axes, y=True)
