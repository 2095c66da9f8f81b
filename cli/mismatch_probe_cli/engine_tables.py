"""What `engines` says of rollout engines and scorers; they are asked, not started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from mismatch_probe_cli.listing import aligned, words

if TYPE_CHECKING:
    from mismatch_probe_reports.tables import Cell, Section

YES, NO = "yes", "no"
# Terminals from which on capabilities have columns of their own, and a summary beside them.
SPREAD, WIDE = 120, 160


@dataclass(frozen=True, slots=True)
class SideEntry:
    """A rollout engine or a scorer as it is here.

    Attributes:
        side: "rollout" or "train".
        name: What a user writes.
        summary: One line.
        capabilities: By capability, whether it can be had here.
        reasons: By capability that cannot, why; for what is not installed this names the mend.
    """

    side: str
    name: str
    summary: str
    capabilities: dict[str, bool]
    reasons: dict[str, str]

    @property
    def available(self) -> bool:
        """Whether it can do here what its side is for: the first of its capabilities."""
        return next(iter(self.capabilities.values()))

    @property
    def mend(self) -> str:
        """Why it is not available and what to do; empty where it is."""
        return "" if self.available else self.reasons.get(next(iter(self.capabilities)), "")


def side_entries() -> list[SideEntry]:
    """All rollout engines, then all scorers; asked, not started."""
    from mismatch_probe.engines.registry import engines
    from mismatch_probe.preflight.capabilities import ENGINE_CAPABILITIES, SCORER_CAPABILITIES
    from mismatch_probe.scorers.registry import scorers

    found = []
    for side, names, registry in (
        ("rollout", ENGINE_CAPABILITIES, engines),
        ("train", SCORER_CAPABILITIES, scorers),
    ):
        for entry in registry:
            able = entry.item.capabilities()
            given = {name: bool(getattr(able, name)) for name in names}
            reasons = {name: text for name, text in able.reason.items() if not given.get(name) and text}
            found.append(SideEntry(side, entry.name, entry.summary, given, reasons))
    return found


def engines_section(entries: Sequence[SideEntry], width: int | None) -> Section:
    """Both sides with a column for each capability.

    Args:
        entries: Sorted by side.
        width: Of the terminal, where a narrow one has the capabilities in one column; None: there is room.
    """
    from mismatch_probe_reports.tables import Cell, Section, Table

    titles = {"rollout": "Rollout engines (--rollout)", "train": "Training-side scorers (--train)"}
    spread = width is None or width >= SPREAD
    tables = []
    for side, group in groupby(entries, key=lambda entry: entry.side):
        held = list(group)
        heads = [name.replace("_", " ") for name in held[0].capabilities] if spread else ["Gives"]
        columns = [words(head) for head in ("Name", "Here", *heads)]
        rows = []
        for entry in held:
            marks = [_mark(able) for able in entry.capabilities.values()] if spread else [Cell(_given(entry))]
            rows.append([Cell(entry.name, code=True), _mark(entry.available), *marks])
        if width is None or width >= WIDE:
            columns.append(words("What it is"))
            rows = [[*row, Cell(entry.summary, tone="muted")] for row, entry in zip(rows, held, strict=True)]
        note = " ".join(f"{entry.name}: {entry.mend}." for entry in held if entry.mend)
        tables.append(Table(side, titles[side], tuple(columns), tuple(map(tuple, rows)), note))
    notes = ("mismatch-probe engines NAME says what an engine is and why it cannot give the rest.",)
    return Section("engines", "Engines", tables=tuple(tables), notes=notes)


def engine_section(name: str, entries: Sequence[SideEntry]) -> Section:
    """One engine in full, on each side where it is."""
    from mismatch_probe_reports.tables import Cell, Section, Table

    columns = (words("Capability"), words("Here"), words("Why not"))
    tables = []
    for entry in entries:
        rows = [
            (Cell(key, code=True), _mark(able), Cell(entry.reasons.get(key, "")))
            for key, able in entry.capabilities.items()
        ]
        rows += [
            (Cell(key, code=True), Cell("in part", tone="warn"), Cell(reason))
            for key, reason in entry.reasons.items()
            if key not in entry.capabilities
        ]
        tables.append(Table(entry.side, f"{entry.side}: {entry.summary}", columns, tuple(rows)))
    return Section("engine", name, tables=tuple(tables))


def engine_lines(entries: Sequence[SideEntry]) -> list[str]:
    """One line an engine."""
    return aligned(
        [
            (
                entry.side,
                entry.name,
                "available" if entry.available else "missing",
                f"{_given(entry).replace(', ', ',') or '-'}  {entry.summary}"
                + (f" ({entry.mend})" if entry.mend else ""),
            )
            for entry in entries
        ]
    )


def engine_detail_lines(entries: Sequence[SideEntry]) -> list[str]:
    """One line a capability."""
    rows = [
        (entry.side, entry.name, key, YES if able else NO, entry.reasons.get(key, ""))
        for entry in entries
        for key, able in entry.capabilities.items()
    ]
    rows += [
        (entry.side, entry.name, key, "in part", reason)
        for entry in entries
        for key, reason in entry.reasons.items()
        if key not in entry.capabilities
    ]
    return aligned(rows)


def _given(entry: SideEntry) -> str:
    return ", ".join(name for name, able in entry.capabilities.items() if able)


def _mark(able: bool) -> Cell:
    from mismatch_probe_reports.tables import Cell

    return Cell(YES if able else NO, tone="pass" if able else "muted")
