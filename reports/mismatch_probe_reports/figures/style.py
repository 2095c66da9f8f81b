"""One look for every figure: palettes, rc settings, axis formatting.

Figures are drawn once, in light colours; in the inlined SVG each of those becomes a CSS variable, so one drawing serves
light and dark pages. What is rasterised cannot follow a variable and takes mid-tones that are readable on both. Colour
never carries meaning alone: line styles, markers and hatching repeat it for readers in greyscale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mismatch_probe_reports import format as fmt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 1600 / 144
DPI = 144
FONT = "DejaVu Sans"
# Substitutes with nearly the same widths, for machines without the font.
FONT_STACK = "'DejaVu Sans', Verdana, 'Bitstream Vera Sans', sans-serif"

LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P")
HATCHES = ("", "//", "..", "\\\\", "xx", "--")


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of one rendering.

    Attributes:
        foreground: Text, axes and outlines.
        muted: Secondary text, reference lines.
        grid: Grid lines.
        surface: What stands behind text that crosses lines.
        fills: Light fills for bars; dark text and outlines stay readable on them.
        series: Line colours.
        raster: Mid-tones for rasterised marks.
    """

    foreground: str
    muted: str
    grid: str
    surface: str
    fills: tuple[str, ...]
    series: tuple[str, ...]
    raster: tuple[str, str, str]


RASTER = ("#3b82d6", "#cf6a1f", "#7a8590")
LIGHT = Palette(
    foreground="#1b1f24",
    muted="#57606a",
    grid="#dfe3e8",
    surface="#ffffff",
    fills=("#9cc3e6", "#f2bf94", "#b9dcc0", "#d9c3e3", "#e6dfa3", "#d0d5db"),
    series=("#0b5cad", "#b34700", "#0a7a55", "#7b3294", "#6b5f00", "#444c56"),
    raster=RASTER,
)
# The page has its own value of each of these, by theme; no two may be equal.
CSS_VARIABLES: dict[str, str] = {
    LIGHT.foreground: "var(--fg)",
    LIGHT.muted: "var(--muted)",
    LIGHT.grid: "var(--grid)",
    LIGHT.surface: "var(--bg)",
    **{colour: f"var(--fill-{index})" for index, colour in enumerate(LIGHT.fills, start=1)},
    **{colour: f"var(--series-{index})" for index, colour in enumerate(LIGHT.series, start=1)},
}


def settings(palette: Palette) -> dict[str, Any]:
    """Return rc settings for `palette`; result strings are never parsed as mathematics."""
    return {
        "font.family": [FONT],
        "font.size": 10.0,
        "text.parse_math": False,
        "text.color": palette.foreground,
        "axes.edgecolor": palette.muted,
        "axes.labelcolor": palette.foreground,
        "axes.facecolor": "none",
        "axes.linewidth": 0.8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.titlepad": 8.0,
        "axes.unicode_minus": False,
        "figure.facecolor": "none",
        "figure.titlesize": 13.0,
        "figure.titleweight": "bold",
        "grid.color": palette.grid,
        "grid.linewidth": 0.7,
        "hatch.linewidth": 0.6,
        "legend.frameon": False,
        "legend.handlelength": 3.2,
        "legend.fontsize": 9.5,
        "lines.linewidth": 1.6,
        "xtick.color": palette.muted,
        "xtick.labelcolor": palette.foreground,
        "ytick.color": palette.muted,
        "ytick.labelcolor": palette.foreground,
    }


def plain_ticks(axes: Axes, *, x: bool = False, y: bool = False) -> None:
    """Write the major ticks of the named axes as plain numbers (1e-3, not ten to the power) and no minor labels."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for wanted, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        if wanted:
            axis.set_major_formatter(FuncFormatter(lambda value, _: fmt.tick(value)))
            axis.set_minor_formatter(NullFormatter())
