"""Validity checks and provenance: may the numbers be trusted, and what made them."""

from __future__ import annotations

from typing import Any

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    look_up,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell, settings_table

STATUS_TONES = {"pass": "pass", "fail": "fail", "not_run": "muted"}


def build_validity(result: Json) -> Section:
    """Return the validity checks: each with its status, what was seen and the bar."""
    quality = result.get("data_quality")
    title = "Validity checks"
    if reason := why_absent(quality):
        return Section("validity", title, missing=reason)
    quality = read_mapping(quality)
    rows = [_check_row(check) for check in read_rows(quality.get("checks"))]
    columns = (
        Column("Check", numeric=False),
        Column("Code", numeric=False, rank=2),
        Column("Status", numeric=False),
        Column("Observed"),
        Column("Bar"),
        Column("Detail", numeric=False, rank=3),
    )
    table = Table(
        "checks",
        "Validity before magnitude: bugs that would make the drift meaningless",
        columns,
        tuple(rows),
    )
    notes = []
    excluded = read_number(quality.get("excluded_tokens"))
    if excluded.value:
        notes.append(f"{fmt.plural(int(excluded.value), 'token')} were left out of every number below.")
    return Section("validity", title, lead=_validity_lead(quality), tables=(table,), notes=tuple(notes))


def _check_row(check: Json) -> tuple[Cell, ...]:
    status = read_text(check.get("status"), "not_run")
    return (
        Cell(read_text(check.get("name"), "unnamed check")),
        Cell(read_text(check.get("code"))),
        Cell(status.replace("_", " "), tone=STATUS_TONES.get(status, "")),
        _optional(check, "observed"),
        _optional(check, "bar"),
        Cell(read_text(check.get("detail"))),
    )


def _optional(record: Json, key: str) -> Cell:
    """Write a number that a check need not have: blank rather than a reason where it has none."""
    raw = record.get(key)
    if isinstance(raw, str | bool):
        return Cell(fmt.scalar(raw))
    return Cell("") if raw is None else estimate_cell(raw)


def _validity_lead(quality: Json) -> str:
    checks = read_rows(quality.get("checks"))
    failed = [
        read_text(check.get("name"), "unnamed check") for check in checks if check.get("status") == "fail"
    ]
    skipped = sum(1 for check in checks if check.get("status") not in {"pass", "fail"})
    named = f" Failed: {', '.join(failed)}." if failed else ""
    if quality.get("trusted") is False:
        return f"The numbers below are NOT to be trusted until this is mended.{named}"
    tail = f"; {fmt.plural(skipped, 'check')} could not be run" if skipped else ""
    passed = fmt.plural(len(checks) - skipped - len(failed), "check")
    doubt = f"{named} None of it puts the numbers in doubt." if failed else ""
    return f"{passed} passed{tail}.{doubt} The numbers below measure the engines, not a bug."


def build_provenance(result: Json) -> Section:
    """Return what made the numbers: both engines, the model, sampling, prompts, versions, the command."""
    provenance = result.get("provenance")
    if reason := why_absent(provenance):
        return Section("provenance", "Provenance", missing=reason)
    provenance = read_mapping(provenance)
    brief, full = _sides_tables(provenance)
    tables = [settings_table("run", "This run", _run_settings(provenance)), brief]
    if sampling := _readable(provenance.get("sampling")):
        tables.append(settings_table("sampling", "Sampling", sampling))
    tables.append(full)
    # Long, and read only to repeat a run: closed, so that the measurement comes sooner.
    for key, caption in (
        ("model", "Model of the rollout side" if _two_models(provenance) else "Model"),
        *((("train_model", "Model of the training side"),) if _two_models(provenance) else ()),
        ("prompts", "Prompts"),
        ("versions", "Versions"),
    ):
        if values := _readable(provenance.get(key)):
            tables.append(settings_table(key, caption, values, collapsed=True))
    shown = tuple(table for table in tables if table.rows)
    return Section("provenance", "Provenance", lead=subject(result), tables=shown)


def _two_models(provenance: Json) -> bool:
    """Return whether each side has a checkpoint of its own; the training side may state less of the same one."""
    model = read_mapping(provenance.get("model"))
    stated = read_mapping(provenance.get("train_model"))
    return any(value is not None and value != model.get(key) for key, value in stated.items())


def subject(result: Json) -> str:
    """Return one sentence that names the two sides, the model and the amount of data."""
    if reason := why_absent(result.get("provenance")):
        return f"What was compared is not known: {reason}."
    provenance = read_mapping(result.get("provenance"))
    rollout, train = read_mapping(provenance.get("rollout")), read_mapping(provenance.get("train"))
    model = read_text(look_up(provenance, "model", "name"), "a model without a name")
    amounts = []
    for key, noun in (("num_tokens", "response token"), ("num_sequences", "sequence")):
        value = read_number(provenance.get(key)).value
        if value is not None:
            amounts.append(fmt.plural(int(value), noun))
    prompts = read_number(look_up(provenance, "prompts", "num_prompts")).value
    if prompts is not None:
        amounts.append(fmt.plural(int(prompts), "prompt"))
    over = f", over {', '.join(amounts)}" if amounts else ""
    return f"{model}: rollout {_side(rollout, 'engine')} against training {_side(train, 'scorer')}{over}."


def _side(side: Json, key: str) -> str:
    parts = [read_text(side.get(key), "engine not reported"), read_text(side.get("version"))]
    where = [read_text(side.get(name)) for name in ("dtype", "device")]
    described = ", ".join(part for part in where if part)
    return " ".join(part for part in parts if part) + (f" ({described})" if described else "")


def _run_settings(provenance: Json) -> dict[str, object]:
    names = {
        "run_id": "run",
        "created_at": "created",
        "tool_version": "mismatch-probe version",
        "command": "command",
        "num_sequences": "sequences",
        "num_tokens": "response tokens",
        "num_prompt_tokens": "prompt tokens",
        "mean_reward": "mean reward",
    }
    settings: dict[str, object] = {}
    for key, label in names.items():
        value: Any = provenance.get(key)
        if isinstance(value, dict):
            value = read_number(value).value
        settings[label] = value
    settings["legs"] = [read_text(leg) for leg in read_list(provenance.get("legs"))]
    return settings


def _sides_tables(provenance: Json) -> tuple[Table, Table]:
    """Return what names the two engines, and in a closed table the options and details of each."""
    rollout, train = read_mapping(provenance.get("rollout")), read_mapping(provenance.get("train"))
    keys: dict[str, None] = {"engine": None}
    for key in (*rollout, *train):
        if key not in {"engine", "scorer"}:
            keys.setdefault(str(key))
    brief: list[tuple[Cell, ...]] = []
    full: list[tuple[Cell, ...]] = []
    for key in keys:
        left = rollout.get("engine") if key == "engine" else rollout.get(key)
        right = train.get("scorer") if key == "engine" else train.get(key)
        tone = "warn" if key == "dtype" and left != right else ""
        row = (Cell(fmt.clean(key).replace("_", " ")), _setting(left, tone), _setting(right, tone))
        (full if isinstance(left, dict) or isinstance(right, dict) else brief).append(row)
    columns = (
        Column("Setting", numeric=False),
        Column("Rollout side (mu)", numeric=False),
        Column("Training side (pi)", numeric=False),
    )
    return (
        Table("sides", "The two sides", columns, tuple(brief)),
        Table("side-options", "Options of the two sides", columns, tuple(full), collapsed=True),
    )


def _setting(value: object, tone: str) -> Cell:
    return Cell("-", tone="muted") if value is None else Cell(fmt.scalar(value), tone=tone)


def _readable(values: object) -> dict[str, object]:
    return {str(key).replace("_", " "): value for key, value in read_mapping(values).items()}
