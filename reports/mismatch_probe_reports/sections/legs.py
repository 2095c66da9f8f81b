"""The legs: where along the way from the sampler to the trainer the log-probabilities part."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    Number,
    look_up,
    pick,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell, fact, fact_table

TITLE = "Legs: where the drift comes from"
_MANY_WEIGHTS = 16
STEP_COLUMNS = (
    Column("Step", numeric=False),
    Column("What it means", numeric=False, rank=3),
    Column(
        "K3 (nats)",
        help="Mean of exp(l) - 1 - l, an estimate of KL(mu || pi) per token that is never negative",
    ),
    Column("K1 (nats)", rank=3, help="Mean of -l, the unbiased estimate of the same KL with more noise"),
    Column("Mean |l| (nats)", rank=2, help="Mean absolute log-ratio per token"),
    Column("Max |l| (nats)", rank=2),
    Column("Std of l", rank=3, help="Standard deviation over tokens, nats"),
    Column("Std of log W", rank=3, help="Standard deviation over sequences of the summed log-ratio, nats"),
    Column("Identical", rank=2, help="Share of tokens whose two log-probabilities are the same number"),
)


def step_name(step: Json) -> str:
    """Return `from -> to` of a step."""
    return f"{read_text(step.get('from'), '?')} -> {read_text(step.get('to'), '?')}"


def step_role(step: Json) -> str:
    """Return what a step is for: chain, total, replay, reference or floor."""
    role = read_text(step.get("role"))
    if role:
        return role
    return "chain" if step.get("waterfall") is True else "other"


def is_exact(step: Json) -> bool:
    """Return whether every token of the step agrees to the last bit."""
    return step.get("exact") is True


def build_legs(result: Json) -> Section:
    """Return the steps between legs, their covariance and the noise floor."""
    legs = result.get("legs")
    if reason := why_absent(legs):
        return Section("legs", TITLE, missing=reason)
    legs = read_mapping(legs)
    steps = read_rows(legs.get("steps"))
    tables = [
        Table(
            "steps",
            "Every step between two legs (the same tokens on both sides)",
            STEP_COLUMNS,
            tuple(_step_row(step) for step in steps),
            note="Steps add up token by token; their K3 do not, because steps are correlated (see the covariance).",
        )
    ]
    tables += _covariance_tables(read_mapping(legs.get("covariance")))
    tables.append(_comparison_table(read_rows(legs.get("comparisons"))))
    tables.append(_floor_table(read_mapping(legs.get("floor"))))
    sync = read_mapping(result.get("weight_sync"))
    tables.append(_reload_table(sync))
    available = [read_text(leg) for leg in read_list(legs.get("available"))]
    notes = [f"Legs in this run: {', '.join(available)}."] if available else []
    notes += [_reload_note(sync)] if sync else []
    return Section(
        "legs",
        TITLE,
        lead=_lead(legs, steps),
        tables=tuple(table for table in tables if table.rows),
        figures=("waterfall",),
        notes=tuple(notes),
    )


def _step_row(step: Json) -> tuple[Cell, ...]:
    exact = is_exact(step)
    role = step_role(step)
    sample = read_number(step.get("num_sequences")).value
    asides = [role] if role not in {"chain", "other"} else []
    asides += [] if sample is None else [fmt.plural(int(sample), "sequence")]
    label = step_name(step) + (f" ({', '.join(asides)})" if asides else "")
    k3 = Cell("EXACT", detail="0 on every token", tone="exact") if exact else estimate_cell(pick(step, "k3"))
    return (
        Cell(label),
        Cell(read_text(step.get("meaning"))),
        k3,
        estimate_cell(pick(step, "k1")),
        estimate_cell(pick(step, "mean_abs")),
        estimate_cell(pick(step, "max_abs")),
        estimate_cell(pick(step, "std")),
        estimate_cell(pick(step, "sequence_std")),
        estimate_cell(pick(step, "identical_fraction"), fmt.percent),
    )


def _reload_table(sync: Json) -> Table:
    """Return the weights that a reload of the same checkpoint left other than they were; no rows where none is."""
    rows = tuple(
        (
            Cell(read_text(item.get("name"), "unnamed"), code=True),
            Cell(" x ".join(fmt.scalar(size) for size in read_list(item.get("shape")))),
            Cell(read_text(item.get("what")), tone="fail"),
        )
        for item in read_rows(read_mapping(sync.get("weights")).get("differences"))
    )
    columns = (
        Column("Weight in the rollout engine", numeric=False),
        Column("Shape", numeric=False, rank=2),
        Column("After the load", numeric=False),
    )
    caption = "Weight sync: what loading the same checkpoint again left other than it was"
    return Table("weight-sync", caption, columns, rows, collapsed=len(rows) > _MANY_WEIGHTS)


def _reload_note(sync: Json) -> str:
    if reason := why_absent(sync):
        return f"Weight sync was not read: {reason}."
    weights = read_mapping(sync.get("weights"))
    tokens = fmt.plural(int(read_number(sync.get("num_tokens")).value or 0), "token")
    compared = int(read_number(weights.get("compared")).value or 0)
    changed = len(read_rows(weights.get("differences")))
    came = "changed no bit" if sync.get("exact") is True else f"left {changed} other than they were"
    unread = len(read_list(weights.get("unread")))
    blind = f" {fmt.plural(unread, 'tensor')} could not be read." if unread else ""
    seconds = fmt.number(read_number(sync.get("seconds")).value or 0.0)
    return (
        f"Weight sync: the engine loaded its own checkpoint again, between two readings of the same {tokens}; of "
        f"{fmt.plural(compared, 'tensor')} it {came}.{blind} This took {seconds} s."
    )


def _lead(legs: Json, steps: list[Json]) -> str:
    chain = [step for step in steps if step_role(step) == "chain"]
    if not chain:
        return "No two legs share tokens, so there is no step to show."
    measured = [(read_number(step.get("k3")).value, step) for step in chain]
    known = [(value, step) for value, step in measured if value is not None]
    if not known:
        return "No step has a K3; the table gives the reasons."
    if all(is_exact(step) for _, step in known):
        return "Every step is exact: the legs agree to the last bit on every token."
    value, largest = max(known, key=lambda pair: pair[0])
    sentence = f"The largest step is {step_name(largest)}, K3 = {fmt.number(value)} nats per token."
    over = read_number(look_up(legs, "floor", "total_over_floor")).value
    if over is not None:
        sentence += f" The total is {fmt.times(over)} the noise floor."
    return sentence


def _covariance_tables(covariance: Json) -> list[Table]:
    """Return the covariance of the steps over sequences and over tokens, as far as each can be had."""
    over_sequences = _covariance_table(
        covariance, "matrix", "variance_total", "covariance", "sequences (sums over a response)"
    )
    over_tokens = _covariance_table(
        covariance, "token_matrix", "token_variance_total", "covariance-tokens", "tokens"
    )
    return [table for table in (over_sequences, over_tokens) if table is not None]


def _covariance_table(covariance: Json, key: str, total_key: str, name: str, over: str) -> Table | None:
    steps = [read_text(step) for step in read_list(covariance.get("steps"))]
    matrix = read_list(covariance.get(key))
    if not steps or len(matrix) != len(steps):
        return None
    rows = []
    for step, line in zip(steps, matrix, strict=True):
        cells = [estimate_cell(value) for value in read_list(line)[: len(steps)]]
        cells += [Cell("")] * (len(steps) - len(cells))
        rows.append((Cell(step), *cells))
    columns = (Column("Step (nats squared)", numeric=False), *(Column(step) for step in steps))
    total = read_number(covariance.get(total_key)).value
    note = "The diagonal is each step's variance; off the diagonal, what two steps do together."
    if total is not None:
        note += f" Variance of the total, the sum of all entries: {fmt.number(total)}."
    return Table(name, f"Covariance between steps, over {over}", columns, tuple(rows), note=note)


def _comparison_table(comparisons: list[Json]) -> Table:
    rows = []
    for item in comparisons:
        rows.append(
            (
                Cell(read_text(item.get("leg"), "a leg without a name")),
                Cell(read_text(item.get("changes"))),
                estimate_cell(pick(item, "k3_difference")),
                _p_cell(item, "p_value"),
                _p_cell(item, "p_holm"),
            )
        )
    columns = (
        Column("Instead of train/forward", numeric=False),
        Column("What it changes", numeric=False, rank=3),
        Column("Change of K3 (nats)", help="K3 from rollout/decode to this leg, less that to train/forward"),
        Column("p", rank=2, help="Sign-flip permutation by prompt, two-sided"),
        Column("p (Holm)", help="Corrected for the number of legs compared"),
    )
    note = "Paired on the same tokens, by prompt; below 0 the drift is smaller."
    return Table("comparisons", "Does another training-side forward drift less?", columns, tuple(rows), note)


def _p_cell(item: Json, key: str) -> Cell:
    if item.get(key) is None:
        return Cell(fmt.NOT_AVAILABLE, reason="needs two prompts and finite differences", tone="muted")
    return estimate_cell(item.get(key))


def _floor_table(floor: Json) -> Table:
    used = pick(floor, "k3")
    exact = floor.get("exact") is True
    source = read_text(floor.get("source"), "a source that is not reported")
    facts = [
        fact(
            "Repeat forward (K3)",
            _floor_part(floor, "repeat_k3"),
            "The training side against itself, other batching",
        ),
        fact(
            "Decode against prefill (K3)",
            _floor_part(floor, "decode_prefill_k3"),
            "The rollout engine against itself",
        ),
        fact("Rounding (K3)", _floor_part(floor, "rounding_k3"), "What rounding in the trainer's dtype does"),
        fact(
            "Floor used (K3)",
            used,
            f"From {source}",
            lambda value: "EXACT (0)" if exact else fmt.number(value),
        ),
        fact(
            "Total over floor",
            pick(floor, "total_over_floor"),
            "How many floors the total drift is",
            fmt.times,
        ),
    ]
    return fact_table("floor", "Noise floor (nats per token)", facts)


def _floor_part(floor: Json, key: str) -> Number:
    """Read one of the noises; the reason beside them speaks of the floor as a whole."""
    number = read_number(floor.get(key))
    return Number(None, reason="the leg was not taken") if floor.get(key) is None else number
