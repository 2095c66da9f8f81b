"""Ablation: what each knob does to the drift of the same tokens, and whether a weight sync is whole."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import Json, look_up, pick, read_mapping, read_rows, read_text, why_absent
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell

TITLE = "Ablation: one thing changed at a time"
MISSING = "no knob was turned; run: mismatch-probe ablate RUN"
COLUMNS = (
    Column("Knob", numeric=False),
    Column("Change of K3 (nats)", help="Token K3 with the knob turned less that without, same tokens"),
    Column("In floors", help="The same, over the K3 of the training side against itself, batched otherwise"),
    Column("p (Holm)", help="Sign flips by prompt, corrected over the rows in effect"),
    Column("Change of std log W (nats)", rank=2),
    Column("Mean |change|", rank=3, help="Of the log ratio of a token, nats"),
    Column("Same bits", rank=2, help="Share of tokens whose log ratio did not change in any bit"),
    Column("Prefill: mean |change|", rank=3, help="The rollout engine's prefill scores, nats"),
)
REFIT_COLUMNS = (
    Column("Loaded", numeric=False),
    Column("Path", numeric=False),
    Column("Mean |change| (nats)"),
    Column("Largest (nats)"),
    Column("Same bits"),
)
MODULE_COLUMNS = (
    Column("Weight", numeric=False),
    Column("Loaded", numeric=False),
    Column("What", numeric=False),
    Column("Largest difference"),
    Column("Elements that differ"),
)
CASES = (("same", "the same checkpoint"), ("updated", "an updated checkpoint"))
MAX_MODULES = 40
OWN_SETTING = "the run's own setting"


def build_ablation(result: Json) -> Section:
    """Return the ranked table of knobs and what loading weights did."""
    raw = result.get("ablation")
    if raw is None:
        return Section("ablation", TITLE, missing=MISSING)
    if reason := why_absent(raw):
        return Section("ablation", TITLE, missing=reason)
    ablation = read_mapping(raw)
    tables: list[Table] = []
    notes: list[str] = []
    said = [
        f"{fmt.clean(row.get('title'))}: {fmt.clean(row.get('detail'))}."
        for row in read_rows(ablation.get("findings"))
    ]
    rows = read_rows(ablation.get("rows"))
    if rows:
        table, left = _knobs(ablation, rows)
        tables.append(table)
        notes += left
    refit = read_mapping(ablation.get("refit"))
    if refit:
        found, left = _refit(refit)
        tables += found
        notes += left
        if not said and found:
            said.append("Every load that was tried left the rollout engine as a fresh one, in every bit.")
    return Section(
        "ablation", TITLE, lead=" ".join(said), tables=tuple(tables), notes=tuple(notes),
        figures=("ablation",) if rows else (),
    )  # fmt: skip


def _knobs(ablation: Json, rows: list[Json]) -> tuple[Table, list[str]]:
    shown, notes = [], []
    for row in rows:
        name = read_text(row.get("knob"))
        if reason := read_text(row.get("unavailable")):
            kind = "" if reason.startswith(OWN_SETTING) else "unavailable: "
            notes.append(f"{name} ({read_text(row.get('changes'))}): {kind}{reason.rstrip('.')}.")
        elif row.get("in_effect") is False:
            notes.append(
                f"{name} ({read_text(row.get('changes'))}): not in effect: not one bit of any log-probability changed."
            )
        else:
            shown.append(_row(row))
    prompts, tokens = (
        estimate_cell(pick(ablation, key), fmt.integer).text for key in ("num_prompts", "num_tokens")
    )
    caption = f"Knobs by how much they change K3, on {tokens} tokens of {prompts} prompts"
    baseline = estimate_cell(look_up(ablation, "k3")).text
    floor = estimate_cell(look_up(ablation, "floor")).text
    note = f"Baseline K3 {baseline} nats, noise floor {floor} nats; train/forward minus rollout/forced."
    return Table("ablation-knobs", caption, COLUMNS, tuple(shown), note=note), notes


def _row(row: Json) -> tuple[Cell, ...]:
    change = read_mapping(row.get("change"))
    prefill = read_mapping(row.get("prefill"))
    return (
        Cell(read_text(row.get("knob")), code=True),
        estimate_cell(pick(change, "k3_change")),
        estimate_cell(pick(change, "floors")),
        estimate_cell(pick(change, "p_holm")),
        estimate_cell(pick(change, "std_change")),
        estimate_cell(pick(change, "mean_abs")),
        estimate_cell(pick(change, "identical_fraction"), fmt.percent),
        estimate_cell(pick(prefill, "mean_abs")) if prefill else Cell("-", tone="muted"),
    )


def _refit(refit: Json) -> tuple[list[Table], list[str]]:
    rows: list[tuple[Cell, ...]] = []
    modules: list[tuple[Cell, ...]] = []
    notes: list[str] = []
    if reason := read_text(refit.get("unavailable")):
        return [], [f"refit: unavailable: {reason.rstrip('.')}."]
    for key, name in CASES:
        case = read_mapping(refit.get(key))
        if reason := read_text(case.get("unavailable")):
            notes.append(f"refit, {name}: unavailable: {reason.rstrip('.')}.")
            continue
        for path in ("decode", "prefill"):
            step = read_mapping(case.get(path))
            tone = "exact" if step.get("exact") is True else "fail"
            rows.append(
                (
                    Cell(name),
                    Cell(path),
                    Cell("EXACT", tone=tone) if tone == "exact" else estimate_cell(pick(step, "mean_abs")),
                    estimate_cell(pick(step, "max_abs")),
                    estimate_cell(pick(step, "identical_fraction"), fmt.percent),
                )
            )
        weights = read_mapping(case.get("weights"))
        differing = read_rows(weights.get("differences"))
        modules += [_module(row, name) for row in differing[:MAX_MODULES]]
        compared = estimate_cell(pick(weights, "compared"), fmt.integer).text
        more = f", {MAX_MODULES} of them shown" if len(differing) > MAX_MODULES else ""
        notes.append(
            f"refit, {name}: {len(differing)} of {compared} weights differ from a fresh engine{more}."
        )
        unread = weights.get("unread")
        if isinstance(unread, list) and unread:
            notes.append(f"refit, {name}: {len(unread)} packed weights could not be read or asked.")
    tables = [Table("ablation-refit", "Weights loaded into the running engine", REFIT_COLUMNS, tuple(rows))]
    if modules:
        tables.append(
            Table(
                "ablation-modules", "Weights that differ from a fresh engine", MODULE_COLUMNS, tuple(modules)
            )
        )
    return (tables if rows else []), notes


def _module(row: Json, name: str) -> tuple[Cell, ...]:
    return (
        Cell(read_text(row.get("name")), code=True),
        Cell(name),
        Cell(read_text(row.get("what"))),
        estimate_cell(pick(row, "max_abs")),
        estimate_cell(pick(row, "differing_fraction"), fmt.percent),
    )
