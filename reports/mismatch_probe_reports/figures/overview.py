"""The run in one picture: the verdict, its gravest findings, and four panels; made for a pull request or a slide.

Its letters are larger than those of the other figures: a forge shows a picture of 1600 pixels at little more than half
of that.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import sheet_png
from mismatch_probe_reports.figures.ecdf import draw_tail, read_distribution
from mismatch_probe_reports.figures.log_weight_length import draw_scatter, read_scatter
from mismatch_probe_reports.figures.style import HATCHES, Palette, plain_ticks
from mismatch_probe_reports.model import Report, build_report
from mismatch_probe_reports.reading import Json, Number, look_up, pick, read_mapping, read_rows, read_text
from mismatch_probe_reports.sections.legs import step_role

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAME = "overview"
HEAD_WIDTH = 118
MOST_FINDINGS = 3
SENTENCE_LINES = 2
LINE_INCHES = 0.235
PANEL_INCHES = 2.6
BADGES = {"pass": "#0a7a55", "fail": "#b42318", "warn": "#9a6700", "muted": "#57606a"}
# Steps that tell the story, by role; the chain's parts stand in the figure of the legs.
_SHOWN = {"total": "rollout against trainer", "replay": "with the rollout's experts", "reference": "rounding of the trainer",
          "floor": "batching of the trainer"}  # fmt: skip
METHODS = ("vespo", "token_tis", "seq_tis", "gspo", "icepop", "seq_is")


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows.
        note: Unit and n, and what to conclude.
        draw: Draws it.
    """

    title: str
    note: str
    draw: Callable[[Axes, Palette], None]


def panels(result: Json) -> tuple[Panel, ...]:
    """The panels that the result has numbers for, at most four, in the order of the story."""
    made = (_legs(result), _tail(result), _weights(result), _flips(result), _methods(result))
    return tuple(panel for panel in made if panel is not None)[:4]


def overview_png(result: Json) -> bytes:
    """Return the picture; the same result gives the same bytes.

    Args:
        result: result.json as a mapping.
    """
    report, shown = build_report(result), panels(result)
    rows = (len(shown) + 1) // 2

    def draw(figure: SubFigure, palette: Palette) -> None:
        draw_overview(figure, palette, report, shown)

    return sheet_png(draw, _head_inches(head_lines(report)) + max(PANEL_INCHES * rows, 0.6))


def _head_inches(lines: list[tuple[str, bool]]) -> float:
    return 0.45 + LINE_INCHES * len(lines)


def draw_overview(figure: SubFigure, palette: Palette, report: Report, shown: tuple[Panel, ...]) -> None:
    """Draw head and panels.

    Args:
        figure: Where to.
        palette: In these colours.
        report: The verdict and the findings.
        shown: What `panels` returned.
    """
    lines = head_lines(report)
    rows = (len(shown) + 1) // 2
    bands: Any = figure.subfigures(
        2, 1, height_ratios=[_head_inches(lines), max(PANEL_INCHES * rows, 0.6)], hspace=0.0
    )
    head, body = bands
    _draw_head(head, palette, report, lines)
    if not shown:
        body.text(
            0.5, 0.5, "nothing to draw: see the report for the reasons", ha="center", color=palette.muted
        )
        return
    grid: Any = body.subplots(rows, 2 if len(shown) > 1 else 1, squeeze=False)
    for axes, panel in zip(grid.flat, shown, strict=False):
        panel.draw(axes, palette)
        axes.set_title(panel.title, fontsize=12.0, fontweight="bold", pad=24)
        axes.annotate(
            panel.note, (0, 1), xytext=(0, 8), xycoords="axes fraction", textcoords="offset points",
            fontsize=10.0, color=palette.muted, annotation_clip=False,
        )  # fmt: skip
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()


def _draw_head(head: SubFigure, palette: Palette, report: Report, lines: list[tuple[str, bool]]) -> None:
    inches = _head_inches(lines)
    head.text(
        0.018, 1 - 0.2 / inches, report.verdict, fontsize=15, fontweight="bold", va="top", color="#ffffff",
        bbox={"facecolor": BADGES.get(report.tone, BADGES["muted"]), "edgecolor": "none", "pad": 6},
    )  # fmt: skip
    for place, (text, bold) in enumerate(lines):
        head.text(
            0.19 if place < SENTENCE_LINES else 0.012, 1 - (0.17 + LINE_INCHES * place) / inches, text, va="top",
            fontsize=11.5, fontweight="bold" if bold else "normal",
            color=palette.foreground if place < SENTENCE_LINES else palette.muted,
        )  # fmt: skip


def head_lines(report: Report) -> list[tuple[str, bool]]:
    """The sentence, what was compared, and the gravest findings, as lines with whether they are bold."""
    said = textwrap.wrap(report.sentence, HEAD_WIDTH - 18, max_lines=SENTENCE_LINES, placeholder=" ...")
    lines = [(line, True) for line in said] + [("", False)] * (SENTENCE_LINES - len(said))
    lines += [
        (line, False)
        for line in textwrap.wrap(report.subject, HEAD_WIDTH + 10, max_lines=2, placeholder=" ...")
    ]
    for finding in report.findings[:MOST_FINDINGS]:
        text = f"{finding.code} {finding.severity}: {finding.title}"
        if finding.observed.text != "-":
            text += f" (observed {finding.observed.text}" + (
                f", bar {finding.bar.text})" if finding.bar.text != "-" else ")"
            )
        lines.append((textwrap.shorten(text, HEAD_WIDTH + 6, placeholder=" ..."), False))
    return lines


def _legs(result: Json) -> Panel | None:
    steps = [step for step in read_rows(look_up(result.get("legs"), "steps")) if "num_sequences" not in step]
    bars: list[tuple[str, Number]] = []
    for step in steps:
        role, k3 = step_role(step), pick(step, "k3")
        # Of the two steps that replay makes, the one that starts at the sampler says what is left.
        from_sampler = read_text(step.get("from")).startswith("rollout/") or role not in ("replay",)
        if (
            role in _SHOWN
            and k3.value
            and k3.value > 0
            and from_sampler
            and _SHOWN[role] not in [name for name, _ in bars]
        ):
            bars.append((_SHOWN[role], k3))
    if not bars:
        return None
    counts = [k3.n for _, k3 in bars if k3.n]
    told = f"; n = {fmt.plural(max(counts), 'token')}" if counts else ""
    return Panel(
        "K3 of the drift and its yardsticks",
        f"nats per token, log scale{told}",
        lambda axes, palette: _draw_legs(axes, palette, bars),
    )


def _draw_legs(axes: Axes, palette: Palette, bars: list[tuple[str, Number]]) -> None:
    values = [k3.value or 0.0 for _, k3 in bars]
    floor = min(values) / 3
    for place, (_, k3) in enumerate(bars):
        value = k3.value or 0.0
        axes.barh(
            place, value - floor, left=floor, height=0.6, facecolor=palette.fills[place], edgecolor=palette.foreground,
            hatch=HATCHES[place], linewidth=0.8,
        )  # fmt: skip
        if k3.low is not None and k3.high is not None and k3.low > 0:
            axes.plot([k3.low, k3.high], [place, place], color=palette.foreground, marker="|", linewidth=1.4)
        axes.annotate(
            fmt.number(value),
            (max(value, k3.high or value), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_xscale("log")
    axes.set_xlim(floor, 20 * max(max(values), *(k3.high or 0.0 for _, k3 in bars)))
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    plain_ticks(axes, x=True)


def _tail(result: Json) -> Panel | None:
    distribution = read_distribution(result)
    if isinstance(distribution, str):
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        draw_tail(axes, palette, distribution)
        axes.set_xscale("log")
        axes.set_xlabel("|log-ratio| of a token (nats)")
        axes.set_ylabel("share of tokens above")
        axes.legend(loc="lower left", fontsize=9.5, handlelength=1.2)
        plain_ticks(axes, x=True, y=True)

    n = "tokens" if distribution.num_tokens is None else fmt.plural(distribution.num_tokens, "token")
    return Panel("How far tokens move", f"share of {n} above each |log-ratio|", draw)


def _weights(result: Json) -> Panel | None:
    scatter = read_scatter(result)
    if isinstance(scatter, str):
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        draw_scatter(axes, palette, scatter)
        handles, labels = axes.get_legend_handles_labels()
        groups = [place for place, label in enumerate(labels) if label.startswith("A ")]
        axes.legend(
            [handles[place] for place in groups], [labels[place].partition(" (")[0] for place in groups],
            loc="lower left", fontsize=9.5, ncols=3, handlelength=1.0, columnspacing=1.2,
        )  # fmt: skip

    sequence = result.get("sequence")
    count = pick(sequence, "num_sequences").value or len(scatter.length)
    told = f"n = {fmt.plural(int(count), 'response')}"
    ess, k_hat = pick(sequence, "ess").value, pick(look_up(sequence, "k_hat"), "value").value
    told += "" if k_hat is None else f"; k-hat {k_hat:.2f}"
    told += "" if ess is None else f", ESS {fmt.percent(ess)}"
    return Panel("Log W by response length", told, draw)


def _flips(result: Json) -> Panel | None:
    routing = read_mapping(result.get("routing"))
    rows = [
        (layer, agreement, agreement.value)
        for row in read_rows(routing.get("layers"))
        for layer, agreement in [(pick(row, "layer").value, pick(row, "set_agreement"))]
        if layer is not None and agreement.value is not None
    ]
    if not rows:
        return None
    layers = [layer for layer, *_ in rows]

    def draw(axes: Axes, palette: Palette) -> None:
        axes.bar(
            layers, [100 * (1 - value) for *_, value in rows], width=0.7, facecolor=palette.fills[0],
            edgecolor=palette.foreground, hatch=HATCHES[1], linewidth=0.8,
        )  # fmt: skip
        for layer, a, _ in rows:
            if a.low is not None and a.high is not None:
                axes.plot(
                    [layer, layer],
                    [100 * (1 - a.high), 100 * (1 - a.low)],
                    color=palette.foreground,
                    marker="_",
                )
        axes.set_xlabel("layer of the model")
        axes.set_ylabel("routers that flip (%)")
        if len(layers) <= 16:
            axes.set_xticks(layers)
        plain_ticks(axes, x=True, y=True)

    any_flip, explained = (
        pick(routing, "token_any_flip_rate").value,
        pick(routing.get("replay"), "explained").value,
    )
    told = [] if any_flip is None else [f"{fmt.percent(any_flip)} of tokens"]
    told += [] if explained is None else [f"replay explains {fmt.percent(explained)} of K3"]
    return Panel("Experts that flip, by layer", "; ".join(told), draw)


def _methods(result: Json) -> Panel | None:
    weights = read_mapping(result.get("weights"))
    rows = [
        (read_text(read_mapping(weights.get(name)).get("label"), name), pick(weights.get(name), "ess"))
        for name in METHODS
    ]
    rows = [(label, ess) for label, ess in rows if ess.value is not None]
    if not rows:
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        axes.barh(
            range(len(rows)), [100 * (ess.value or 0.0) for _, ess in rows], height=0.6, facecolor=palette.fills[1],
            edgecolor=palette.foreground, hatch=HATCHES[2], linewidth=0.8,
        )  # fmt: skip
        for place, (_, ess) in enumerate(rows):
            axes.annotate(
                fmt.percent(ess.value or 0.0), (100 * (ess.value or 0.0), place), xytext=(4, 0), textcoords="offset points",
                va="center",
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set_xlim(0, 128)
        axes.set_xlabel("effective sample under the weights (% of n)")
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")

    n = max((ess.n or 0 for _, ess in rows), default=0)
    return Panel("What corrections leave", f"n = {fmt.integer(n)}" if n else "", draw)
