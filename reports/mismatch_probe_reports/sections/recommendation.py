"""Recommendation: what to change, in order, and which number says so."""

from __future__ import annotations

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
from mismatch_probe_reports.sections.put_forward import label_of, recommendation_tables
from mismatch_probe_reports.sections.weights import method_label
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell, settings_table

TITLE = "Recommendation"


def build_recommendation(result: Json) -> Section:
    """Return the ranked actions and the settings to put into the training config."""
    raw = result.get("recommendation")
    if reason := why_absent(raw):
        return Section("recommendation", TITLE, missing=reason)
    recommendation = read_mapping(raw)
    rows = []
    for position, action in enumerate(read_rows(recommendation.get("actions")), start=1):
        rank = read_number(action.get("rank")).value
        rows.append(
            (
                Cell(str(position if rank is None else int(rank))),
                Cell(read_text(action.get("action"))),
                Cell(read_text(action.get("because"))),
                _effects(action),
                _measured(read_mapping(action.get("measured"))),
                Cell(read_text(action.get("code"))),
            )
        )
    columns = (
        Column("Rank", numeric=False),
        Column("Do", numeric=False),
        Column("Because", numeric=False, rank=2),
        Column("What it does to this run", numeric=False, rank=2),
        Column("Measured", numeric=False, rank=3),
        Column("Code", numeric=False, rank=3),
    )
    tables = []
    if rows:
        tables.append(Table("actions", "What to do, in this order", columns, tuple(rows)))
    settings = _settings(recommendation, result)
    if settings:
        tables.append(settings_table("settings", "Settings that fit what was measured", settings))
    tables += recommendation_tables(recommendation)
    assumed = [read_text(text) for text in read_list(recommendation.get("assumptions"))]
    return Section(
        "recommendation",
        TITLE,
        lead=read_text(recommendation.get("summary")),
        tables=tuple(tables),
        notes=(f"Assumed: {'; '.join(assumed)}.",) if assumed else (),
    )


def _effects(action: Json) -> Cell:
    """What an action does, each with its intervals; or why that is not known."""
    said = []
    for effect in map(read_mapping, read_rows(action.get("effects"))):
        before, after, change = (_with_interval(effect, key) for key in ("before", "after", "change"))
        text = read_text(effect.get("quantity"))
        if before and after:
            text += f" {before} to {after}"
        elif before or after:
            text += f" {before or after}"
        if change:
            text += f", {read_text(effect.get('change_means'))} {change}"
        said.append(text)
    return Cell("; ".join(said) or read_text(action.get("no_effect")), tone="" if said else "muted")


def _with_interval(effect: Json, key: str) -> str:
    if effect.get(key) is None:
        return ""
    share = effect.get("unit") == "share" or (
        str(effect.get("change_means")).startswith("share") and key == "change"
    )
    cell = estimate_cell(effect.get(key), fmt.percent if share else fmt.number)
    return f"{cell.text} {cell.detail}".strip()


def _measured(measured: Json) -> Cell:
    name = read_text(measured.get("name"))
    value = read_number(measured.get("value"))
    if not name:
        return Cell("")
    if value.value is None:
        return Cell(name, reason=value.reason)
    return Cell(f"{name} = {fmt.number(value.value)}")


def _settings(recommendation: Json, result: Json) -> dict[str, object]:
    settings: dict[str, object] = {}
    goal = read_text(recommendation.get("goal"))
    if goal:
        settings["goal"] = goal
    method = read_text(recommendation.get("method"))
    if method:
        record = read_mapping(look_up(result, "weights", method))
        label = method_label(method, record)
        settings["correction"] = label if label.lower() == method.lower() else f"{label} ({method})"
    parameters = read_mapping(recommendation.get("parameters"))
    if parameters:
        settings["parameters"] = dict(parameters)
    choice = read_mapping(look_up(recommendation, "goals", goal)) if goal else {}
    if choice:
        settings["runner-up"] = label_of(recommendation.get("candidates"), choice.get("runner_up"))
    for key, label in (
        ("weight_reads", "weight reads"),
        ("routing_replay", "routing replay (R3)"),
        ("fp32_head", "float32 output head"),
    ):
        if recommendation.get(key) is not None:
            settings[label] = recommendation[key]
    return settings
