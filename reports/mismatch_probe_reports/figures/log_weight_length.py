"""Log-weight of a response against its length, with the drift line and its band."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import Palette, plain_ticks
from mismatch_probe_reports.reading import Json, look_up, read_array, read_number, why_absent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAME = "log_weight_length"
TITLE = "Log-weight of each response against its length"
HEIGHT_INCHES = 4.9
DRAWABLE = 1e100
# What Gaussian noise puts within two standard deviations.
EXPECTED_INSIDE = 0.9545
ENOUGH = 20


@dataclass(frozen=True, slots=True)
class Scatter:
    """Sequences to draw.

    Attributes:
        length: Response tokens [n].
        log_weight: Log W in nats [n].
        advantage: Advantages [n], NaN where not known.
        kappa: Nats of log W lost per token, or None.
        sigma: Standard deviation of log W + kappa T per square root of a token, or None.
    """

    length: NDArray[np.float64]
    log_weight: NDArray[np.float64]
    advantage: NDArray[np.float64]
    kappa: float | None
    sigma: float | None

    def inside(self) -> float:
        """Return the share of sequences inside the band of two standard deviations; 1 where there is none."""
        if self.kappa is None or self.sigma is None:
            return 1.0
        distance = np.abs(self.log_weight + self.kappa * self.length)
        return float(np.mean(distance <= 2 * self.sigma * np.sqrt(self.length)))


def prepare(result: Json) -> Plot | Missing:
    """Read the sequences and return the plot, or why there is none."""
    scatter = read_scatter(result)
    if isinstance(scatter, str):
        return Missing(NAME, TITLE, scatter)
    drawn = len(scatter.length)
    total = read_number(look_up(result.get("sequence"), "num_sequences")).value or drawn
    title = f"{TITLE} (n = {fmt.plural(int(total), 'sequence')}"
    title += f", {fmt.integer(drawn)} drawn)" if drawn < total else ")"

    def draw(figure: SubFigure, palette: Palette) -> None:
        axes = figure.subplots()
        draw_scatter(axes, palette, scatter)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3)

    return Plot(NAME, title, _caption(scatter), HEIGHT_INCHES, draw)


def read_scatter(result: Json) -> Scatter | str:
    """Read the sequences, or say why there are none to draw."""
    sequence = result.get("sequence")
    raw = look_up(sequence, "scatter")
    if reason := why_absent(sequence) or why_absent(raw):
        return reason
    length, log_weight = read_array(look_up(raw, "length")), read_array(look_up(raw, "log_weight"))
    if len(length) != len(log_weight):
        return "lengths and log-weights do not fit together"
    advantage = read_array(look_up(raw, "advantage"))
    if len(advantage) != len(length):
        advantage = np.full(len(length), np.nan)
    usable = np.isfinite(length) & np.isfinite(log_weight) & (length > 0) & (np.abs(log_weight) < DRAWABLE)
    if not usable.any():
        return "no sequence has a finite log-weight"
    return _scatter(sequence, length[usable], log_weight[usable], advantage[usable])


def _scatter(
    sequence: object,
    length: NDArray[np.float64],
    log_weight: NDArray[np.float64],
    advantage: NDArray[np.float64],
) -> Scatter:
    """Take the band from the length law (variance per token), or else fit it to the points drawn."""
    kappa = read_number(look_up(sequence, "length_law", "kappa")).value
    if kappa is None or abs(kappa) >= DRAWABLE or len(length) < 2:
        return Scatter(length, log_weight, advantage, None, None)
    variance = read_number(look_up(sequence, "length_law", "variance_per_token")).value
    if variance is None:
        variance = float(np.mean(np.square(log_weight + kappa * length) / length))
    sigma = math.sqrt(max(variance, 0.0))
    return Scatter(length, log_weight, advantage, kappa, sigma)


def _caption(scatter: Scatter) -> str:
    if not scatter.log_weight.any():
        return "Every response has log W = 0 exactly: its weight is 1 at any length."
    if scatter.kappa is None:
        return "No drift line: kappa could not be estimated from this run."
    longest = float(scatter.length.max())
    at_end = -scatter.kappa * longest
    inside = scatter.inside()
    trend = f"Log W changes by {fmt.number(-scatter.kappa)} nats per token, {fmt.number(at_end)} at {fmt.integer(longest)}"
    if len(scatter.length) < ENOUGH:
        return (
            f"{trend} tokens; {fmt.plural(len(scatter.length), 'sequence')} are too few to judge the spread."
        )
    share = f"{fmt.percent(inside)} of the sequences lie inside two standard deviations"
    # Fewer than expected only counts beyond three standard errors of that share.
    slack = 3 * math.sqrt(EXPECTED_INSIDE * (1 - EXPECTED_INSIDE) / len(scatter.length))
    if inside >= EXPECTED_INSIDE - slack:
        return f"{trend} tokens; {share}: noise that adds up token by token."
    return f"{trend} tokens; only {share}: a few sequences drift far more than the rest."


def draw_scatter(axes: Axes, palette: Palette, scatter: Scatter) -> None:
    """Draw log W of each response against its length, with the measured drift and its band."""
    axes.axhline(0.0, color=palette.muted, linewidth=0.9)
    if scatter.kappa is not None and scatter.sigma is not None:
        grid = np.linspace(0.0, float(scatter.length.max()) * 1.02, 200)
        centre, spread = -scatter.kappa * grid, 2 * scatter.sigma * np.sqrt(grid)
        axes.plot(grid, centre, color=palette.foreground, linestyle="-", label="-kappa T (measured drift)")
        band: dict[str, Any] = {"color": palette.muted, "linestyle": (0, (5, 3)), "linewidth": 1.2}
        axes.plot(grid, centre + spread, label="two standard deviations, growing with the root of T", **band)
        axes.plot(grid, centre - spread, **band)
    size = 26 if len(scatter.length) <= 600 else 14
    groups = (
        (scatter.advantage > 0, "A > 0", "o", palette.raster[0], False),
        (scatter.advantage < 0, "A < 0", "v", palette.raster[1], True),
        (scatter.advantage == 0, "A = 0", "s", palette.raster[2], False),
        (np.isnan(scatter.advantage), "advantage not known", "D", palette.raster[2], False),
    )
    for chosen, label, marker, colour, filled in groups:
        if not chosen.any():
            continue
        axes.scatter(
            scatter.length[chosen],
            scatter.log_weight[chosen],
            s=size,
            marker=marker,
            facecolors=colour if filled else "none",
            edgecolors=colour,
            linewidths=0.9,
            alpha=0.9,
            rasterized=True,
            label=f"{label} (n = {fmt.integer(int(chosen.sum()))})",
        )
    axes.set_xlim(0, float(scatter.length.max()) * 1.03)
    axes.set_xlabel("response length T (tokens)")
    axes.set_ylabel("log W (nats)")
    plain_ticks(axes, x=True, y=True)
