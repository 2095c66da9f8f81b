"""Routing: whether the two sides send tokens to the same experts."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    pick,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell, fact, fact_table

TITLE = "Expert routing"
LAYERS_SHOWN_OPEN = 12


def routing_sentence(routing: Json) -> str:
    """Say in one sentence how far the experts agree and what forcing them explains."""
    agreement = read_number(routing.get("set_agreement"))
    any_flip = read_number(routing.get("token_any_flip_rate"))
    parts = []
    if agreement.value is not None:
        parts.append(f"the same expert set on {fmt.percent(agreement.value)} of token-layer pairs")
    if any_flip.value is not None:
        parts.append(f"{fmt.percent(any_flip.value)} of tokens differ in at least one layer")
    if not parts:
        return f"Agreement cannot be had: {agreement.reason}."
    sentence = "; ".join(parts)
    explained = read_number(read_mapping(routing.get("replay")).get("explained"))
    if explained.value is not None:
        sentence += f"; forcing the rollout's experts removes {fmt.percent(explained.value)} of the K3"
    return sentence[0].upper() + sentence[1:] + "."


def build_routing(result: Json) -> Section:
    """Return agreement by layer, flips per token, drift by flips and the replay."""
    routing = result.get("routing")
    if reason := why_absent(routing):
        return Section("routing", TITLE, missing=reason)
    routing = read_mapping(routing)
    tables = [_facts(routing), _replay(routing), _layers(routing), _by_flips(routing)]
    note = read_text(read_mapping(routing.get("replay")).get("note"))
    return Section(
        "routing",
        TITLE,
        lead=routing_sentence(routing),
        tables=tuple(table for table in tables if table.rows),
        figures=("routing",),
        notes=(note,) if note else (),
    )


def _facts(routing: Json) -> Table:
    completeness = read_mapping(routing.get("completeness"))
    missing = read_number(completeness.get("missing")).value
    rows = [
        fact("Set agreement", pick(routing, "set_agreement"), "Same set of experts, all layers", fmt.percent),
        fact(
            "Tokens with any flip",
            pick(routing, "token_any_flip_rate"),
            "At least one layer differs",
            fmt.percent,
        ),
        fact("Flipped layers per token", pick(routing, "mean_flipped_layers"), "Mean over tokens"),
    ]
    size = []
    for key, noun in (("num_layers", "MoE layer"), ("num_experts", "expert"), ("num_tokens", "token")):
        value = read_number(routing.get(key)).value
        if value is not None:
            size.append(fmt.plural(int(value), noun))
    top_k = read_number(routing.get("top_k")).value
    note = ", ".join(size) + ("" if top_k is None else f", top-{int(top_k)}")
    if missing:
        note += f"; routing is missing for {fmt.plural(int(missing), 'token')}"
    return fact_table("routing-facts", "Agreement over all layers", rows, note)


def _replay(routing: Json) -> Table:
    replay = routing.get("replay")
    if reason := why_absent(replay):
        replay = {key: {"value": None, "reason": reason} for key in ("k3_forward", "k3_replay", "explained")}
    replay = read_mapping(replay)
    rows = [
        fact("K3, own routing (nats)", pick(replay, "k3_forward"), "Drift with the trainer's own experts"),
        fact("K3, rollout's routing (nats)", pick(replay, "k3_replay"), "Drift with the experts forced (R3)"),
        fact("Explained by routing", pick(replay, "explained"), "1 - forced / own", fmt.percent),
    ]
    return fact_table("replay", "Routing replay", rows)


def _layers(routing: Json) -> Table:
    rows = []
    unranked = read_text(routing.get("top1_reason"))
    for layer in read_rows(routing.get("layers")):
        index = read_number(layer.get("layer")).value
        rows.append(
            (
                Cell("?" if index is None else str(int(index))),
                estimate_cell(pick(layer, "set_agreement"), fmt.percent),
                estimate_cell(pick(layer, "jaccard"), fmt.percent),
                estimate_cell(
                    pick({"top1_agreement_reason": unranked, **layer}, "top1_agreement"), fmt.percent
                ),
            )
        )
    columns = (
        Column("Layer", numeric=False),
        Column("Set agreement", help="All k experts the same, in any order"),
        Column("Jaccard", help="Experts shared over experts used by either side"),
        Column("Top-1 agreement", help="The expert with the largest gate is the same"),
    )
    return Table(
        "routing-layers", "Agreement by layer", columns, tuple(rows), collapsed=len(rows) > LAYERS_SHOWN_OPEN
    )


def _by_flips(routing: Json) -> Table:
    rows = []
    for item in read_rows(routing.get("log_ratio_by_flips")):
        flips = estimate_cell(pick(item, "flips"), fmt.integer).text
        if item.get("or_more") is True:
            flips += " or more"
        rows.append(
            (
                Cell(flips),
                estimate_cell(pick(item, "n"), fmt.integer),
                estimate_cell(pick(item, "mean_abs_log_ratio")),
                estimate_cell(pick(item, "k3")),
            )
        )
    columns = (
        Column("Flipped layers", numeric=False),
        Column("Tokens"),
        Column("Mean |log-ratio| (nats)"),
        Column("K3 (nats)"),
    )
    return Table("flips", "Drift by number of flipped layers", columns, tuple(rows), collapsed=len(rows) > 12)
