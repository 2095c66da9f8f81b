"""Rendering a plot: inline SVG that follows the page's theme, and PNG in a fixed light theme. Both byte-stable."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from mismatch_probe_reports.figures.slim import slim
from mismatch_probe_reports.figures.style import (
    CSS_VARIABLES,
    DPI,
    FONT,
    FONT_STACK,
    LIGHT,
    WIDTH_INCHES,
    Palette,
    settings,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.text import Text

CAPTION_WIDTH = 150
CAPTION_LINE_INCHES = 0.2
HEAD_INCHES = 0.45
_VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')
_POINTS_PER_INCH = 72.0
FOOT_INCHES = 0.12


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure that can be drawn.

    Attributes:
        name: File stem and identifier.
        title: What the figure is, with n.
        caption: A sentence computed from the numbers that says what to conclude.
        height_inches: Height of the drawing without title and caption; the width is common.
        draw: Draws into a part of a figure with the given palette.
    """

    name: str
    title: str
    caption: str
    height_inches: float
    draw: Callable[[SubFigure, Palette], None]


@dataclass(frozen=True, slots=True)
class Missing:
    """A figure that cannot be drawn, and why."""

    name: str
    title: str
    reason: str

    def __str__(self) -> str:
        return f"figure {self.name} left out: {self.reason}"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot, drawn.

    Attributes:
        svg: An `<svg>` element for a page that defines the CSS variables of the style; without caption.
        png: 1600 pixels wide at 144 dpi, on white, with title and caption.
    """

    svg: str
    png: bytes


def draw(plot: Plot) -> Drawing:
    """Draw a plot once, in both formats."""
    with _drawn(plot) as (figure, caption):
        return Drawing(_to_svg(plot, figure, caption), _to_png(figure))


def to_svg(plot: Plot) -> str:
    """Return the figure as an `<svg>` element, see `Drawing`."""
    with _drawn(plot) as (figure, caption):
        return _to_svg(plot, figure, caption)


def to_png(plot: Plot) -> bytes:
    """Return the figure as PNG, see `Drawing`."""
    return draw(plot).png


def sheet_png(draw_on: Callable[[SubFigure, Palette], None], height_inches: float) -> bytes:
    """Return a picture with a head of its own as PNG, 1600 pixels wide, on white.

    Args:
        draw_on: Draws everything into the whole picture.
        height_inches: Its height.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _fixed_settings({"font.size": 11.0}):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        whole: Any = figure.subfigures(1, 1)
        draw_on(whole, LIGHT)
        return _to_png(figure)


def _to_svg(plot: Plot, figure: Figure, caption: Caption) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    caption.text.set_visible(False)
    buffer = io.StringIO()
    # Not savefig: it draws the figure a second time, to no output, before it draws it.
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(buffer, metadata={"Date": None})
    figure.set_dpi(DPI)  # print_svg leaves its own
    caption.text.set_visible(True)
    return _inline(buffer.getvalue(), plot, caption)


def _to_png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_facecolor(LIGHT.surface)
    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Caption:
    """The caption at the foot of a figure; a page writes it as text and leaves the strip away.

    Attributes:
        text: The text in the figure.
        height_inches: Of the strip.
    """

    text: Text
    height_inches: float


@contextmanager
def _drawn(plot: Plot) -> Iterator[tuple[Figure, Caption]]:
    with _fixed_settings({"svg.fonttype": "none", "svg.hashsalt": plot.name, "svg.id": _identifier(plot)}):
        yield _new_figure(plot)


@contextmanager
def _fixed_settings(more: dict[str, Any]) -> Iterator[None]:
    """Draw from matplotlib's defaults and the style alone, whatever a user's matplotlibrc says."""
    import matplotlib

    defaults: dict[Any, Any] = {
        key: value
        for key, value in matplotlib.rcParamsDefault.items()
        if not key.startswith(("backend", "date."))
    }
    defaults.update(settings(LIGHT))
    defaults.update(more)
    with matplotlib.rc_context(defaults):
        yield


def _new_figure(plot: Plot) -> tuple[Figure, Caption]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = textwrap.wrap(plot.caption, CAPTION_WIDTH)
    caption_inches = CAPTION_LINE_INCHES * len(lines)
    heights = [HEAD_INCHES, plot.height_inches, FOOT_INCHES + caption_inches]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    # Title and caption have bands of their own, so that neither axes nor legends can run into them.
    bands: Any = figure.subfigures(3, 1, height_ratios=heights, hspace=0.0)
    head, body, foot = bands
    head.text(0.01, 0.35, plot.title, fontsize=13.0, fontweight="bold", va="center")
    text = foot.text(0.01, 0.9, "\n".join(lines), color=LIGHT.muted, va="top", linespacing=1.3)
    plot.draw(body, LIGHT)
    # Found once and kept: with a layout engine each drawing would find it again.
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")
    return figure, Caption(text, caption_inches)


def _inline(document: str, plot: Plot, caption: Caption) -> str:
    """Turn a stand-alone SVG document into an element that can live beside others in one page."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The rule applies to every element of the page, not to this figure; the page's own style sheet has it.
    svg = re.sub(r"\s*<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>", "", svg)
    svg = slim(svg, _identifier(plot))
    # The page's style sheet names the font once for all drawings.
    svg = svg.replace(f" font-family: '{FONT}';", "")
    svg = svg.replace(f"'{FONT}'", FONT_STACK)
    for colour, variable in CSS_VARIABLES.items():
        svg = svg.replace(colour, variable)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    cropped = caption.height_inches * _POINTS_PER_INCH
    head = _VIEW_BOX.sub(lambda box: f'viewBox="0 0 {box[1]} {float(box[2]) - cropped:.2f}"', head)
    label = escape(f"{plot.title}. {plot.caption}", quote=True)
    return f'{head} role="img" aria-label="{label}">{rest.rstrip()}'


def _identifier(plot: Plot) -> str:
    """Return the element's identifier, which no part of the page shares."""
    return f"drawing-{plot.name}"
