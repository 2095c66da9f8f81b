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

from mismatch_probe_reports.figures.style import (
    CSS_VARIABLES,
    DPI,
    FONT,
    FONT_STACK,
    LIGHT,
    SENTINEL,
    WIDTH_INCHES,
    Palette,
    settings,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

CAPTION_WIDTH = 150
CAPTION_LINE_INCHES = 0.2
HEAD_INCHES = 0.45
# Markup but no text content: numbers there are coordinates, of which a hundredth of a point is enough.
_TAG = re.compile(r"<[a-z][^>]*>")
_LONG_DECIMAL = re.compile(r"(?<![\w.#])-?\d+\.\d{3,}")
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


def to_svg(plot: Plot) -> str:
    """Return the figure as an `<svg>` element for a page that defines the CSS variables of the style."""
    with _fixed_settings(
        SENTINEL, {"svg.fonttype": "none", "svg.hashsalt": plot.name, "svg.id": _identifier(plot)}
    ):
        figure = _new_figure(plot, SENTINEL, caption=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", dpi=DPI, metadata={"Date": None}, transparent=True)
    return _inline(buffer.getvalue(), plot)


def to_png(plot: Plot) -> bytes:
    """Return the figure with title and caption as PNG, 1600 pixels wide at 144 dpi, on white."""
    with _fixed_settings(LIGHT, {}):
        figure = _new_figure(plot, LIGHT, caption=True)
        figure.set_facecolor(LIGHT.surface)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


@contextmanager
def _fixed_settings(palette: Palette, more: dict[str, Any]) -> Iterator[None]:
    """Draw from matplotlib's defaults and the style alone, whatever a user's matplotlibrc says."""
    import matplotlib

    defaults: dict[Any, Any] = {
        key: value
        for key, value in matplotlib.rcParamsDefault.items()
        if not key.startswith(("backend", "date."))
    }
    defaults.update(settings(palette))
    defaults.update(more)
    with matplotlib.rc_context(defaults):
        yield


def _new_figure(plot: Plot, palette: Palette, *, caption: bool) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = textwrap.wrap(plot.caption, CAPTION_WIDTH) if caption else []
    heights = [HEAD_INCHES, plot.height_inches, FOOT_INCHES + CAPTION_LINE_INCHES * len(lines)]
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    # Title and caption have bands of their own, so that neither axes nor legends can run into them.
    bands: Any = figure.subfigures(3, 1, height_ratios=heights, hspace=0.0)
    head, body, foot = bands
    head.text(0.01, 0.35, plot.title, fontsize=13.0, fontweight="bold", va="center")
    if lines:
        foot.text(0.01, 0.9, "\n".join(lines), color=palette.muted, va="top", linespacing=1.3)
    plot.draw(body, palette)
    return figure


def _inline(document: str, plot: Plot) -> str:
    """Turn a stand-alone SVG document into an element that can live beside others in one page."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The rule applies to every element of the page, not to this figure; the page's own style sheet has it.
    svg = re.sub(r"\s*<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>", "", svg)
    svg = _TAG.sub(lambda tag: _LONG_DECIMAL.sub(_shortened, tag[0]), svg)
    svg = _rename(_slim(svg, _identifier(plot)), _identifier(plot))
    # The page's style sheet names the font once for all drawings.
    svg = svg.replace(f" font-family: '{FONT}';", "")
    svg = svg.replace(f"'{FONT}'", FONT_STACK)
    for sentinel, variable in CSS_VARIABLES.items():
        svg = svg.replace(sentinel, variable)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    label = escape(f"{plot.title}. {plot.caption}", quote=True)
    return f'{head} role="img" aria-label="{label}">{rest.rstrip()}'


def _identifier(plot: Plot) -> str:
    """Return the element's identifier, which no part of the page shares."""
    return f"drawing-{plot.name}"


def _slim(svg: str, root: str) -> str:
    """Leave out what does not show: identifiers that nothing refers to, groups that say nothing, indentation.

    Together these are a third of a drawing, and a page has many.
    """
    used = {root, *re.findall(r'(?:href="#|url\(#)([^")]+)', svg)}
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = svg.replace(' transform="rotate(-0 ', ' transform="rotate(0 ')
    svg = re.sub(r' transform="rotate\(0 [^)]*\)"', "", svg)
    svg = re.sub(r">\s+<", "><", svg)
    kept: list[bool] = []

    def group(match: re.Match[str]) -> str:
        if match[0] == "</g>":
            return match[0] if kept.pop() else ""
        if match[0] == "<g/>":
            return ""
        if not match[0].endswith("/>"):
            kept.append(match[0] != "<g>")
        return match[0] if match[0] != "<g>" else ""

    return re.sub(r"<g(?:\s[^>]*)?/?>|</g>", group, svg)


def _rename(svg: str, root: str) -> str:
    """Number the identifiers inside a drawing in order of appearance.

    Names such as axes_1 repeat in every figure; those of clip paths are hashes of coordinates in which the layout
    solver leaves noise far below a pixel, different in every run.
    """
    names = dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg))
    numbered = {name: f"{root}-{number}" for number, name in enumerate(names) if name != root}

    def rename(match: re.Match[str]) -> str:
        return f"{match[1]}{numbered.get(match[2], match[2])}"

    return re.sub(r'(\bid="|\bhref="#|url\(#)([^")]+)', rename, svg)


def _shortened(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
