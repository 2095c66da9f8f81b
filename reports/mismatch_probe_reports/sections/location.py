"""Location: the module where the hidden states of the two sides part."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell

TITLE = "Layers: where hidden states part"
MISSING = "hidden states were not compared; run: mismatch-probe locate RUN"
MOST_RANKED = 12
LOCAL = "The unit's own error: both sides given the rollout engine's input of it, distance over what the unit gives"
ROUNDING = "The same distance between float32 and the side that is nearer to it: what rounding does here"


def build_location(result: Json) -> Section:
    """Return accumulated and local error by layer, and the units farthest beyond rounding."""
    raw = result.get("location")
    if raw is None:
        return Section("location", TITLE, missing=MISSING)
    if reason := why_absent(raw):
        return Section("location", TITLE, missing=reason)
    location = read_mapping(raw)
    units = read_rows(location.get("units"))
    tables = [_by_layer(location, units), _ranked(units, read_mapping(location.get("meanings")))]
    fused = _fused(location)
    return Section(
        "location",
        TITLE,
        lead=read_text(location.get("sentence"), "The result does not say where they part."),
        tables=(*tables, *((fused,) if fused.rows else ())),
        brief=tuple(tables),
        figures=("location",),
        notes=(_subject(location),),
    )


def _subject(location: Json) -> str:
    sides = []
    for side in ("rollout", "train"):
        facts = read_mapping(location.get(side))
        sides.append(
            f"{read_text(facts.get('name'))} {read_text(facts.get('version'))} {read_text(facts.get('dtype'))}"
        )
    tokens, count = (
        read_number(location.get("num_tokens")).value,
        read_number(location.get("num_sequences")).value,
    )
    fed = "" if tokens is None or count is None else (
        f", {fmt.plural(int(tokens), 'token')} of {fmt.plural(int(count), 'sequence')} in one prefill each"
    )  # fmt: skip
    return (
        f"{sides[0]} against {sides[1]}{fed}. Accumulated: both sides run by themselves. Local: every layer and module of "
        "the training side is fed with the rollout engine's own input of it, experts as the rollout chose them."
    )


def unit_name(unit: Json) -> str:
    """Return "layer 3 qkv_proj", or the name alone outside the layers."""
    layer = read_number(unit.get("layer")).value
    name = read_text(unit.get("unit"), "unit without a name")
    return name if layer is None else f"layer {int(layer)} {name}"


def _by_layer(location: Json, units: list[Json]) -> Table:
    local = {read_number(unit.get("layer")).value: unit for unit in units if unit.get("unit") == "layer"}
    rows = []
    for drift in read_rows(location.get("layers")):
        layer = read_number(drift.get("layer")).value
        unit = local.get(layer, {})
        rows.append(
            (
                Cell(fmt.NOT_AVAILABLE if layer is None else fmt.integer(layer)),
                estimate_cell(drift.get("accumulated"), fmt.percent),
                estimate_cell(drift.get("rounding"), fmt.percent),
                estimate_cell(unit.get("local"), fmt.percent),
                estimate_cell(unit.get("rounding"), fmt.percent),
                _times(unit),
            )
        )
    columns = (
        Column("Layer"),
        Column(
            "Accumulated error", help="Distance of the residual streams after the layer, over the rollout's"
        ),
        Column("Accumulated by rounding", help="The same, training side against itself in float32", rank=2),
        Column("Local error", help=LOCAL),
        Column("Local by rounding", help=ROUNDING, rank=2),
        Column("Local over rounding"),
    )
    return Table("location-layers", "Error by layer", columns, tuple(rows), collapsed=len(rows) > 12)


def _ranked(units: list[Json], meanings: Json) -> Table:
    def beyond(unit: Json) -> float:
        return read_number(unit.get("over_rounding")).value or 0.0

    ranked = sorted((unit for unit in units if unit.get("exact") is not True), key=beyond, reverse=True)[
        :MOST_RANKED
    ]
    rows = tuple(
        (
            Cell(unit_name(unit), tone="fail" if unit.get("finding") else ""),
            _times(unit),
            estimate_cell(unit.get("over_peers"), fmt.times)
            if unit.get("over_peers") is not None
            else Cell(fmt.NOT_AVAILABLE, tone="muted"),
            Cell(read_text(unit.get("finding"), "within rounding")),
            Cell(read_text(meanings.get(read_text(unit.get("unit"))), "")),
        )
        for unit in ranked
    )
    columns = (
        Column("Unit", numeric=False),
        Column("Local error over rounding", help=f"{LOCAL}; over what rounding does to it"),
        Column("Over its peers", help="The same, over the median of this unit in the other layers", rank=2),
        Column("Finding", numeric=False),
        Column("What it is", numeric=False, rank=3),
    )
    return Table("location-ranked", "Units that differ most", columns, rows)


def _times(unit: Json) -> Cell:
    if unit.get("exact") is True:
        return Cell("EXACT", tone="exact")
    value = read_number(unit.get("over_rounding")).value
    if value is None:
        return Cell(fmt.NOT_AVAILABLE, tone="muted")
    return Cell(fmt.times(value), tone="fail" if unit.get("finding") else "")


def _fused(location: Json) -> Table:
    rows = tuple(
        (Cell(fmt.clean(name), code=True), Cell(", ".join(read_text(part) for part in read_list(parts))))
        for name, parts in read_mapping(location.get("fused")).items()
    )
    columns = (Column("Rollout engine", numeric=False), Column("Training side", numeric=False))
    return Table("location-fused", "Names: what the rollout engine fuses", columns, rows, collapsed=True)
