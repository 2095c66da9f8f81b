"""Writes docs/methods/: a page and a plot for each correction, from its docstring and its own code.

    python tools/document_method_pages.py

A test fails where a page or a plot and the code differ.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Run by its path, `tools` itself is not importable.
sys.path.insert(0, str(Path(__file__).parents[1]))

from mismatch_probe.simulate.curve import weight_curve
from mismatch_probe.simulate.response import WeightCurve
from mismatch_probe.simulate.sums import Ground
from mismatch_probe.weights import FRAMEWORKS, MethodDescription, describe_methods, get_method
from mismatch_probe.weights.describe import defaults_in_words, in_words
from tools.document_methods import table

FOLDER = Path(__file__).parents[1] / "docs" / "methods"
TOKENS = 100
_COLOURS = ("#0b5cad", "#b34700")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mismatch-probe",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def ground() -> Ground:
    """What `weight_curve` draws over: one response of 100 tokens, log W from -4 to 2, tokens within 1 nat."""
    signs = np.array([1.0, -1.0])
    edges = np.array([-1.0, 0.0, 1.0])
    counts = np.ones(2)
    return Ground(
        lengths=np.full(2, float(TOKENS)),
        log_weight=np.array([-4.0, 2.0]),
        advantages=signs,
        clusters=np.arange(2),
        prompts=2,
        assumed=False,
        token_edges=edges,
        token_counts=np.stack([counts, counts]),
        token_total=counts,
    )


def page(row: MethodDescription, curve: WeightCurve | None) -> str:
    """One method's page, Markdown."""
    fitted = defaults_in_words(row)
    parts = [
        f"# {row.label} (`{row.name}`)",
        prose(row.summary),
        prose(row.formula),
        *table(
            ("", ""),
            (
                ("reads", row.reads),
                ("level", row.level),
                ("aggregation of its source", row.aggregation),
                ("defaults", fitted or "none"),
            ),
        ),
    ]
    head, lines = "\n\n".join(parts[:3]), "\n".join(parts[3:])
    sections = [head, lines, *_plotted(row, curve)]
    if row.source:
        sections.append(f"**Source.** {prose(row.source)}")
    sections.append("## Traps\n\n" + "\n".join(f"- {prose(trap)}" for trap in row.traps))
    if row.variants:
        rows = (
            (f'`{v.parameter}="{v.value}"`' + (" (default)" if v.default else ""), v.meaning)
            for v in row.variants
        )
        sections.append("## Variants\n\n" + "\n".join(table(("give it", "and it is"), rows)))
    if row.frameworks:
        coded = (
            (FRAMEWORKS[name], in_words(parameters) or "the defaults")
            for name, parameters in sorted(row.frameworks.items())
        )
        sections.append("## As coded\n\n" + "\n".join(table(("framework", "hyperparameters"), coded)))
    sections.append(
        f'From Python: `get_method("{row.name}")`. All methods: [corrections](../methods.md).\n\n'
        "Written by `tools/document_method_pages.py`."
    )
    return "\n\n".join(sections) + "\n"


def _plotted(row: MethodDescription, curve: WeightCurve | None) -> list[str]:
    if curve is None:
        return ["No plot: a token's phi hangs on more than its own ratio here, so it is no curve."]
    if curve.over == "log_weight":
        drawn = f"a response of {TOKENS} tokens whose drift is spread evenly, against its log W"
    else:
        drawn = f"a token of rollout probability {curve.probability:.2g}, against its own log-ratio"
    return [
        f"![phi of {row.label}, and phi over the ratio itself]({row.name}.svg)",
        f"At the defaults, in a batch without pi_old, for {drawn}. Left: phi, the coefficient on A grad log pi. "
        "Right: phi over the ratio itself, the share of the exactly importance-weighted gradient that is left.",
    ]


def prose(text: str) -> str:
    """A docstring's text with what Markdown would take for markup escaped, outside of backticks."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([*_\[\]])", r"\\\1", piece).replace("<", "&lt;")
        for piece in pieces
    )


def plot(row: MethodDescription, curve: WeightCurve) -> str:
    """The plot as SVG; the same bytes whenever the numbers are the same."""
    import matplotlib
    from matplotlib.figure import Figure

    sequence = curve.over == "log_weight"
    low, high = (-4.0, 2.0) if sequence else (-1.0, 1.0)
    inside = (curve.grid >= low) & (curve.grid <= high)
    grid = curve.grid[inside]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 2.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        for values_, style, colour, label in (
            (curve.positive[inside], "-", _COLOURS[0], "A > 0"),
            (curve.negative[inside], "--", _COLOURS[1], "A < 0"),
        ):
            left.plot(grid, values_, style, color=colour, label=label)
            right.plot(grid, values_ * np.exp(-grid), style, color=colour, label=label)
        for axes, name in ((left, "phi"), (right, "phi / W" if sequence else "phi / ratio")):
            axes.axvline(0.0, color="#b5bcc4", linewidth=0.8, zorder=0)
            axes.set_xlim(low, high)
            axes.set_ylim(*_heights(axes.get_ylim()[1], [line.get_ydata() for line in axes.lines[:2]]))
            axes.set_xlabel("log W (nats)" if sequence else "log-ratio of the token (nats)")
            axes.set_ylabel(name)
        left.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None, "Title": f"phi of {row.label}"}
        )
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _heights(high: float, curves: list[Any]) -> tuple[float, float]:
    """From 0 up, where nothing is below it; nothing beyond 4 is of interest, nor is a constant to fill the height."""
    high = min(max(high, 1.2), 4.0)
    lowest = min(float(np.min(curve)) for curve in curves)
    return (-0.03 * high if lowest >= 0.0 else max(1.1 * lowest, -4.0)), high


def files() -> dict[str, str]:
    """Every file of the folder by name."""
    written = {}
    over = ground()
    for row in describe_methods():
        curve = weight_curve(get_method(row.name), over, points=101)
        written[f"{row.name}.md"] = page(row, curve)
        if curve is not None:
            written[f"{row.name}.svg"] = plot(row, curve)
    return written


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    made = files()
    for stale in FOLDER.iterdir():
        if stale.name not in made:
            stale.unlink()
    for file_name, text in made.items():
        (FOLDER / file_name).write_text(text, encoding="utf-8")
    print(f"{len(made)} files")
