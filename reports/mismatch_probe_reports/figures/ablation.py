"""Forest plot of an ablation: what each knob adds to K3 or takes away, in units of the noise floor."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.figures.canvas import Missing, Plot
from mismatch_probe_reports.figures.style import Palette
from mismatch_probe_reports.reading import Json, pick, read_mapping, read_rows, read_text, why_absent
from mismatch_probe_reports.sections.ablation import OWN_SETTING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NAME = "ablation"
TITLE = "Ablation: paired change of K3 by knob, in noise floors"
MISSING = "no knob was turned; run: mismatch-probe ablate RUN"
SIGNIFICANT = 0.05
# A side is told by marker and colour, a change beyond chance by a filled marker and bold text.
SIDES = (("rollout", "rollout engine", "o", 0), ("train", "training side", "s", 1))
LIST_WIDTH = 125


@dataclass(frozen=True, slots=True)
class Mark:
    """One row in effect, in noise floors."""

    knob: str
    side: str
    value: float
    low: float | None
    high: float | None
    p_holm: float | None

    @property
    def significant(self) -> bool:
        """Whether the change is beyond chance after Holm's correction."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANT


def prepare(result: Json) -> Plot | Missing:
    """Read the rows and return the plot, or why there is none."""
    raw = result.get("ablation")
    if raw is None:
        return Missing(NAME, TITLE, MISSING)
    if reason := why_absent(raw):
        return Missing(NAME, TITLE, reason)
    ablation = read_mapping(raw)
    rows = read_rows(ablation.get("rows"))
    if not rows:
        return Missing(NAME, TITLE, "no knob was turned beside weight sync")
    floor = pick(ablation, "floor").value
    if not floor or floor < 0:
        return Missing(NAME, TITLE, "the noise floor is not above 0, so there is no unit to draw in")
    marks = [mark for row in rows if (mark := _mark(row, floor)) is not None]
    if not marks:
        return Missing(NAME, TITLE, "no knob is in effect")
    lists = _lists(rows)
    count = pick(ablation, "num_tokens").value
    title = TITLE + (f" (n = {fmt.plural(int(count), 'token')})" if count else "")
    lines = [line for head, names in lists for line in _wrapped(head, names)]

    def draw(figure: SubFigure, palette: Palette) -> None:
        _draw(figure, palette, marks, lines)

    height = 1.3 + 0.3 * len(marks) + 0.2 * len(lines)
    return Plot(NAME, title, _caption(marks, floor), height, draw)


def _mark(row: Json, floor: float) -> Mark | None:
    if read_text(row.get("unavailable")) or row.get("in_effect") is not True:
        return None
    change = read_mapping(row.get("change"))
    k3 = pick(change, "k3_change")
    if k3.value is None:
        return None
    low, high = (None if end is None else end / floor for end in (k3.low, k3.high))
    p_holm = pick(change, "p_holm").value
    mark = Mark(read_text(row.get("knob")), read_text(row.get("side")), k3.value / floor, low, high, p_holm)
    return mark if all(math.isfinite(end) for end in (mark.value, low or 0.0, high or 0.0)) else None


def _lists(rows: list[Json]) -> list[tuple[str, list[str]]]:
    """Names of the rows that are not drawn, by why."""
    own: list[str] = []
    missing: list[str] = []
    still: list[str] = []
    for row in rows:
        name = read_text(row.get("knob"))
        if reason := read_text(row.get("unavailable")):
            (own if reason.startswith(OWN_SETTING) else missing).append(name)
        elif row.get("in_effect") is False:
            still.append(name)
    heads = ("Not in effect (no bit changed):", "The run's own setting:", "Unavailable here:")
    return [(head, names) for head, names in zip(heads, (still, own, missing), strict=True) if names]


def _wrapped(head: str, names: list[str]) -> list[str]:
    return textwrap.wrap(
        f"{head} {', '.join(names)}", LIST_WIDTH, subsequent_indent="    ", break_on_hyphens=False
    )


def _caption(marks: list[Mark], floor: float) -> str:
    beyond = [mark for mark in marks if mark.significant]
    verb = "changes" if len(beyond) == 1 else "change"
    told = (
        f"{len(beyond)} of {fmt.plural(len(marks), 'knob')} in effect {verb} K3 beyond chance "
        f"(Holm p < {SIGNIFICANT:g}, filled). One floor is {fmt.number(floor)} nats."
    )
    ranked = sorted(beyond, key=lambda mark: mark.value)
    if ranked and ranked[-1].value > 0:
        told += f" {ranked[-1].knob} adds most: {fmt.number(ranked[-1].value)} floors."
    if ranked and ranked[0].value < 0:
        told += f" {ranked[0].knob} takes most away: {fmt.number(-ranked[0].value)} floors."
    return told


def _place(value: float) -> float:
    """Where a number of floors stands: linear below one floor, logarithmic beyond, on both sides of 0."""
    return math.copysign(math.log10(1.0 + abs(value)), value)


def _draw(figure: SubFigure, palette: Palette, marks: list[Mark], lines: list[str]) -> None:
    share = 0.2 * len(lines) / (1.3 + 0.3 * len(marks) + 0.2 * len(lines))
    if lines:
        bands: Any = figure.subfigures(2, 1, height_ratios=[1.0 - share, share], hspace=0.0)
        above, below = bands
        below.text(0.01, 0.95, "\n".join(lines), color=palette.muted, va="top", fontsize=9.5, linespacing=1.3)
    else:
        above = figure
    panel: Axes = above.subplots()
    ends = [end for mark in marks for end in (mark.value, mark.low, mark.high) if end is not None]
    left, right = _place(min(0.0, *ends)), _place(max(0.0, *ends))
    room = 0.04 * (right - left) or 0.1
    panel.set_xlim(left - room, right + room)
    panel.set_ylim(len(marks) - 0.4, -0.6)
    panel.axvline(0.0, color=palette.foreground, linewidth=1.0)
    panel.grid(visible=False, axis="y")
    for position, mark in enumerate(marks):
        _draw_mark(panel, palette, mark, position)
    panel.set_yticks(range(len(marks)), [mark.knob for mark in marks], fontsize=9.5)
    for label, mark in zip(panel.get_yticklabels(), marks, strict=True):
        label.set_fontweight("bold" if mark.significant else "normal")
    panel.tick_params(axis="y", length=0)
    panel.set_xticks(*_ticks(left - room, right + room))
    panel.set_xlabel("change of K3 (noise floors; linear below one, then log), 95 % intervals by prompt")
    for _, words, marker, index in SIDES:
        shade = palette.series[index]
        panel.plot([], [], linestyle="none", marker=marker, color=shade, markersize=7, label=words)
    panel.plot(
        [], [], linestyle="none", marker="o", markerfacecolor="none", color=palette.muted, markersize=7,
        label="not beyond chance",
    )  # fmt: skip
    above.legend(*panel.get_legend_handles_labels(), loc="outside upper right", ncols=3)


def _draw_mark(panel: Axes, palette: Palette, mark: Mark, position: int) -> None:
    marker, index = next(((shape, at) for side, _, shape, at in SIDES if side == mark.side), ("D", 5))
    shade = palette.series[index]
    told = fmt.number(mark.value)
    if mark.low is not None and mark.high is not None:
        panel.plot([_place(mark.low), _place(mark.high)], [position, position], color=shade, linewidth=1.6)
        told += f"  [{fmt.number(mark.low)}, {fmt.number(mark.high)}]"
    face: dict[str, Any] = {} if mark.significant else {"markerfacecolor": palette.surface}
    panel.plot(
        [_place(mark.value)], [position], linestyle="none", marker=marker, color=shade, markersize=7, **face
    )
    if mark.p_holm is not None:
        told += f"  p {fmt.number(mark.p_holm, 2)}"
    panel.text(
        1.01, position, told, transform=panel.get_yaxis_transform(), va="center", ha="left", fontsize=9.5,
        fontweight="bold" if mark.significant else "normal",
    )  # fmt: skip


def _ticks(left: float, right: float) -> tuple[list[float], list[str]]:
    """Whole powers of ten and 0, about a dozen; those next to 0 are left out where they would run into it."""
    most = math.ceil(max(abs(left), abs(right)))
    step = max(1, -(-2 * most // 12))
    values = [0.0] + [
        sign * 10.0**power
        for power in range(step if step > 1 else 0, min(most, 300) + 1, step)
        for sign in (-1.0, 1.0)
    ]
    shown = sorted(value for value in values if left <= _place(value) <= right)
    return [_place(value) for value in shown], [fmt.tick(value) for value in shown]
