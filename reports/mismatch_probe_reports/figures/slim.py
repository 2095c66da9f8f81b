"""A drawing with what does not show left out, and what many drawings of a page share written once.

matplotlib writes for editors: every path on lines of its own, every element with its style, an identifier for everything,
dots of a hatch as eight curves each, pictures with all their colours. A page has a dozen drawings and a limit of 1 MB.
"""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Mapping

# Markup but no text content: numbers there are coordinates, of which a hundredth of a point is enough.
_TAG = re.compile(r"<[a-z][^>]*>")
_LONG_DECIMAL = re.compile(r"(?<![\w.#])-?\d+\.\d{3,}")
_PATH = re.compile(r' d="([^"]*)"')
_PATTERN = re.compile(r"<pattern\b.*?</pattern>", re.DOTALL)
_DECIMAL = re.compile(r"-?\d+\.\d+")
_UNSEEN = re.compile(r'<path d="[^"]*"(?: clip-path="[^"]*")? style="fill: none"/>')
_STYLE = re.compile(r' style="([^"]*)"')
_PICTURE = re.compile(r"data:image/png;base64,([^\"]*)")
PICTURE_COLOURS = 64


def slim(svg: str, root: str) -> str:
    """Leave out what does not show and shorten what does.

    Args:
        svg: A drawing as an element.
        root: Its identifier, which stays.
    """
    svg = _TAG.sub(lambda tag: _LONG_DECIMAL.sub(_hundredths, tag[0]), svg)
    # A hatch repeats its pattern everywhere, and a tenth of a point is finer than its lines.
    svg = _PATTERN.sub(lambda pattern: _PATH.sub(_coarse, pattern[0]), svg)
    svg = _PATH.sub(lambda path: f' d="{_short_path(path[1])}"', svg)
    svg = _UNSEEN.sub("", svg)
    svg = _PICTURE.sub(_few_colours, svg)
    return _numbered(_unused(svg, root), root)


def share_styles(drawings: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Write styles that recur in the drawings of a page once.

    Args:
        drawings: Elements by name.

    Returns:
        The elements with classes in place of those styles, and the rules for the page's style sheet.
    """
    # References stay where they are: a style sheet without any is easily seen to load nothing.
    counts = Counter(
        style for svg in drawings.values() for style in _STYLE.findall(svg) if "url(" not in style
    )
    classes = {
        style: f"d{number}"
        for number, style in enumerate(style for style, count in counts.items() if count > 1)
    }

    def name(match: re.Match[str]) -> str:
        known = classes.get(match[1])
        return match[0] if known is None else f' class="{known}"'

    rules = "".join(f".{name}{{{_short_style(style)}}}" for style, name in classes.items())
    return {key: _STYLE.sub(name, svg) for key, svg in drawings.items()}, rules


def _short_style(style: str) -> str:
    return style.replace("; ", ";").replace(": ", ":")


def _hundredths(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _tenths(match: re.Match[str]) -> str:
    return f"{float(match[0]):.1f}".removesuffix(".0")


def _coarse(path: re.Match[str]) -> str:
    parts = (_dot(part) if "C" in part else part for part in re.split(r"(?=M)", path[1]))
    return f' d="{_DECIMAL.sub(_tenths, "".join(parts))}"'


def _dot(curves: str) -> str:
    """A closed ring of curves, which a hatch has for its dots, as two half circles."""
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", curves)]
    across, down = numbers[0::2], numbers[1::2]
    radius = (max(across) - min(across)) / 2.0
    middle = (max(down) + min(down)) / 2.0
    turn = f"a{radius:.1f} {radius:.1f} 0 1 0"
    return f"M{min(across):.1f} {middle:.1f}{turn} {2 * radius:.1f} 0{turn} {-2 * radius:.1f} 0"


def _short_path(path: str) -> str:
    """A path without the white space that separates nothing."""
    path = re.sub(r"\s*([A-Za-z])\s*", r"\1", path)
    return re.sub(r"\s+", " ", path).strip()


def _few_colours(match: re.Match[str]) -> str:
    """A picture with a palette: marks in a few colours at a few opacities."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(match[1]))) as picture:
        reduced = picture.convert("RGBA").quantize(PICTURE_COLOURS, method=Image.Quantize.FASTOCTREE)
    buffer = io.BytesIO()
    reduced.save(buffer, format="PNG", optimize=True)
    smaller = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/png;base64,{smaller}" if len(smaller) < len(match[1]) else match[0]


def _unused(svg: str, root: str) -> str:
    """Leave out identifiers that nothing refers to, groups that say nothing, and indentation."""
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


def _numbered(svg: str, root: str) -> str:
    """Number the identifiers inside a drawing in order of appearance.

    Names such as axes_1 repeat in every figure; those of clip paths are hashes of coordinates in which the layout
    solver leaves noise far below a pixel, different in every run.
    """
    names = dict.fromkeys(re.findall(r'\bid="([^"]+)"', svg))
    numbered = {name: f"{root}-{number}" for number, name in enumerate(names) if name != root}

    def rename(match: re.Match[str]) -> str:
        return f"{match[1]}{numbered.get(match[2], match[2])}"

    return re.sub(r'(\bid="|\bhref="#|url\(#)([^")]+)', rename, svg)
