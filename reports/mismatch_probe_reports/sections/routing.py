"""Routing: whether the two sides send tokens to the same experts."""

from __future__ import annotations

import numpy as np

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    pick,
    read_array,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.tables import (
    Cell,
    Column,
    Section,
    Table,
    estimate_cell,
    fact,
    fact_table,
    fold_reasons,
)

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
    """Return agreement by layer, flips per token, drift by flips, how close flips were, and the replay."""
    routing = result.get("routing")
    if reason := why_absent(routing):
        return Section("routing", TITLE, missing=reason)
    routing = read_mapping(routing)
    replay = read_mapping(routing.get("replay"))
    tables = [
        _facts(routing),
        _replay(routing),
        _controls(replay),
        _replayed_layers(replay),
        _layers(routing),
        _histogram(routing),
        _by_flips(routing),
        _by_first_flip(routing),
        _margins(routing),
    ]
    notes = [read_text(replay.get("note")), read_text(read_mapping(replay.get("by_layer")).get("sentence"))]
    return Section(
        "routing",
        TITLE,
        lead=routing_sentence(routing),
        tables=tuple(table for table in tables if table.rows),
        figures=("routing", "routing_flips"),
        notes=tuple(note for note in notes if note),
        brief=tuple(table for table in tables[:4] if table.rows),
    )


def _facts(routing: Json) -> Table:
    completeness = read_mapping(routing.get("completeness"))
    missing = read_number(completeness.get("missing")).value
    flipped = read_mapping(routing.get("flipped_tokens"))
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
    if flipped:
        rows += [
            fact(
                "Response tokens predicted across a flip",
                pick(flipped, "share_of_tokens"),
                "A layer flipped at the position that predicted them",
                fmt.percent,
            ),
            fact("K3 that they carry", pick(flipped, "share_of_k3"), "Share of the whole drift", fmt.percent),
        ]
    size = []
    for key, noun in (("num_layers", "MoE layer"), ("num_experts", "expert"), ("num_tokens", "token")):
        value = read_number(routing.get(key)).value
        if value is not None:
            size.append(fmt.plural(int(value), noun))
    top_k = read_number(routing.get("top_k")).value
    note = ", ".join(size) + ("" if top_k is None else f", top-{int(top_k)}")
    if missing:
        note += f"; routing is missing for {fmt.plural(int(missing), 'token')}, which agree nowhere and flip nowhere"
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


def _controls(replay: Json) -> Table:
    rows: list[tuple[Cell, ...]] = []
    own, recorded, gates = (read_mapping(replay.get(key)) for key in ("self_replay", "recorded", "gates"))
    if own and not why_absent(own):
        exact = own.get("exact") is True
        change = pick(own, "max_abs_change")
        count = pick(own, "num_tokens").value
        meaning = (
            "The forward's own experts forced on it change nothing, as they must"
            if exact
            else "Replay itself changes the arithmetic: what it explains is not to be trusted"
        )
        value = Cell("EXACT", tone="exact") if exact else Cell(estimate_cell(change).text, tone="fail")
        tokens = Cell("" if count is None else fmt.integer(count))
        rows.append((Cell("Self-replay, largest change (nats)"), value, tokens, Cell(meaning, tone="muted")))
    if recorded and not why_absent(recorded):
        rows += [
            fact(
                "K3 of a repeated forward (nats)",
                pick(recorded, "k3_repeat"),
                "train/forward against itself, batched otherwise",
            ),
            fact(
                "Explained by recorded routes (R2)",
                pick(recorded, "explained"),
                "The share of that noise that goes when the repeat uses the first forward's experts",
                fmt.percent,
            ),
        ]
    if gates and not why_absent(gates):
        rows += [
            fact(
                "Explained by the rollout's ids",
                pick(gates, "explained_ids"),
                "Gates recomputed",
                fmt.percent,
            ),
            fact(
                "Explained by ids and gate weights",
                pick(gates, "explained_ids_and_gates"),
                "The rollout's gate weights taken too",
                fmt.percent,
            ),
        ]
    note = why_absent(gates) if gates else ""
    if rows:
        note = "; ".join(part for part in (_study_size(own or recorded), note) if part)
    return fact_table("replay-controls", "Controls of the replay", rows, note)


def _study_size(record: Json) -> str:
    count = pick(record, "num_sequences").value
    return "" if count is None else f"on {fmt.plural(int(count), 'sequence')} chosen evenly over the run"


def _replayed_layers(replay: Json) -> Table:
    by_layer = read_mapping(replay.get("by_layer"))
    ranked = sorted(
        read_rows(by_layer.get("layers")), key=lambda row: read_number(row.get("rank")).value or float("inf")
    )
    rows = tuple(
        (
            _count(layer, "rank"),
            _count(layer, "layer"),
            estimate_cell(pick(layer, "alone"), fmt.percent),
            estimate_cell(pick(layer, "last"), fmt.percent),
        )
        for layer in ranked
    )
    columns = (
        Column("Rank", numeric=False),
        Column("Layer", numeric=False),
        Column(
            "Explained alone",
            help="1 - K3 with the rollout's experts in this layer only / K3 with own experts",
        ),
        Column("Lost without it", help="K3 that comes back when only this layer keeps its own experts"),
    )
    joint = pick(by_layer, "joint")
    note = _study_size(by_layer)
    if joint.value is not None:
        note += f"; all layers together explain {fmt.percent(joint.value)}"
    return Table(
        "replay-layers",
        "What each layer's routing explains",
        columns,
        rows,
        note,
        collapsed=len(rows) > LAYERS_SHOWN_OPEN,
    )


def _count(record: Json, key: str) -> Cell:
    value = read_number(record.get(key)).value
    return Cell("?" if value is None else str(int(value)))


def _layers(routing: Json) -> Table:
    rows = []
    unranked = read_text(routing.get("top1_reason"))
    for layer in read_rows(routing.get("layers")):
        known = {"top1_agreement_reason": unranked, **layer}
        shares = ("set_agreement", "jaccard", "top1_agreement", "order_changes")
        plain = ("gate_distance", "margin_unflipped", "margin_flipped", "load_total_variation")
        rows.append(
            (
                _count(layer, "layer"),
                *(estimate_cell(pick(known, key), fmt.percent) for key in shares),
                *(estimate_cell(pick(known, key)) for key in plain),
            )
        )
    columns = (
        Column("Layer", numeric=False),
        Column("Set agreement", help="All k experts the same, in any order"),
        Column("Jaccard", help="Experts shared over experts used by either side", rank=2),
        Column("Top-1 agreement", help="The expert with the largest gate is the same", rank=2),
        Column("Order changes", help="Same set of experts, another order of their gates", rank=3),
        Column(
            "Gate distance", help="Half the sum of |difference of gate weights|, where the sets agree", rank=4
        ),
        Column(
            "Margin, unflipped",
            help="Router score of the last expert chosen minus the first left out",
            rank=4,
        ),
        Column(
            "Margin, flipped", help="The same where the other side chose other experts: a near tie?", rank=3
        ),
        Column("Load distance", help="Total variation of the shares of tokens that experts serve", rank=4),
    )
    return fold_reasons(
        Table(
            "routing-layers",
            "Agreement by layer",
            columns,
            tuple(rows),
            collapsed=len(rows) > LAYERS_SHOWN_OPEN,
        )
    )


def _histogram(routing: Json) -> Table:
    counts = read_array(routing.get("flipped_layers_histogram"))
    total = float(counts.sum()) if counts.size and np.isfinite(counts).all() else 0.0
    rows = tuple(
        (Cell(str(flips)), Cell(fmt.integer(count)), Cell(fmt.percent(count / total)))
        for flips, count in enumerate(counts.tolist())
        if total and count
    )
    columns = (Column("Flipped layers", numeric=False), Column("Fed tokens"), Column("Share"))
    return Table("flips-histogram", "Tokens by number of flipped layers", columns, rows, collapsed=True)


def _by_flips(routing: Json) -> Table:
    rows = []
    for item in read_rows(routing.get("log_ratio_by_flips")):
        flips = estimate_cell(pick(item, "flips"), fmt.integer).text
        if item.get("or_more") is True:
            flips += " or more"
        rows.append((Cell(flips), *_drift(item)))
    columns = (Column("Flipped layers", numeric=False), *_DRIFT_COLUMNS)
    return Table("flips", "Drift by number of flipped layers", columns, tuple(rows), collapsed=len(rows) > 12)


def _by_first_flip(routing: Json) -> Table:
    rows = []
    for item in read_rows(routing.get("log_ratio_by_first_flip")):
        layer = read_number(item.get("layer")).value
        rows.append((Cell("none" if layer is None else str(int(layer))), *_drift(item)))
    columns = (Column("First layer that flips", numeric=False), *_DRIFT_COLUMNS)
    return Table(
        "first-flip", "Drift by the first layer that flips", columns, tuple(rows), collapsed=len(rows) > 12
    )


_DRIFT_COLUMNS = (Column("Tokens"), Column("Mean |log-ratio| (nats)"), Column("K3 (nats)"))


def _drift(item: Json) -> tuple[Cell, ...]:
    return (
        estimate_cell(pick(item, "n"), fmt.integer),
        estimate_cell(pick(item, "mean_abs_log_ratio")),
        estimate_cell(pick(item, "k3")),
    )


def _margins(routing: Json) -> Table:
    rows = []
    for item in read_rows(read_mapping(routing.get("margins")).get("bins")):
        low, high = read_number(item.get("low")).value or 0.0, read_number(item.get("high")).value
        span = f"{fmt.number(low)} and more" if high is None else f"{fmt.number(low)} to {fmt.number(high)}"
        rows.append(
            (
                Cell(span),
                estimate_cell(pick(item, "n"), fmt.integer),
                estimate_cell(pick(item, "flipped"), fmt.integer),
                estimate_cell(pick(item, "flip_rate"), fmt.percent),
            )
        )
    columns = (Column("Margin", numeric=False), Column("Decisions"), Column("Flipped"), Column("Flip rate"))
    note = "A margin is the router score of the last expert chosen minus that of the first left out, training side."
    return Table("margins", "How close flipped decisions were", columns, tuple(rows), note, collapsed=True)
