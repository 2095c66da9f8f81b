"""Corrections on this data: what each would do with this run's drift."""

from __future__ import annotations

from dataclasses import replace

from mismatch_probe.simulate.families import FAMILIES
from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    pick,
    read_mapping,
    read_number,
    read_text,
    why_absent,
)
from mismatch_probe_reports.sections.sequence import k_hat_cell
from mismatch_probe_reports.sections.weights_by_length import length_tables
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell

TITLE = "Corrections on this data"
# Named first where a view has no room for all: one of each kind that frameworks ship.
MAIN = ("vespo", "token_tis", "seq_tis", "icepop", "geo_rs", "gspo", "cispo", "ppo_clip")

_NUMBERS = (
    Column("Mean phi", rank=2, help="Average coefficient on A grad log pi; 1 changes nothing"),
    Column("ESS", help="Effective share of the sample after weighting; read with k-hat"),
    Column("Kept", help="Share of tokens that still give a gradient"),
    Column("Z+", rank=2, help="Mean phi where A > 0: the share of the positive signal that is left"),
    Column("Z-", rank=2, help="Mean phi where A < 0: the share of the negative signal that is left"),
    Column("Z- / Z+", help="1 keeps the balance of signs; else the mean advantage drifts"),
)
MAIN_COLUMNS = (Column("Method", numeric=False), Column("Level", numeric=False, rank=3), *_NUMBERS)
ALL_COLUMNS = (
    Column("Kind", numeric=False),
    Column("Method", numeric=False),
    *_NUMBERS,
    Column("Gradient left", help="Sum of |A| phi over sum of |A|: what is left of the gradient's size"),
    Column("Empty", help="Tokens / responses that get nothing at all"),
    Column("Largest share", help="Share of the sum of weights that the largest single weight holds"),
)
SIGN_COLUMNS = (
    Column("Method", numeric=False),
    *(
        Column(f"{title}, A {sign} 0")
        for sign in (">", "<")
        for title in ("ESS", "Kept", "Gradient left", "Empty", "Largest share")
    ),
)
PARAMETER_COLUMNS = (
    Column("Method", numeric=False),
    Column("Name", numeric=False),
    Column("Level", numeric=False),
    Column("Reads", numeric=False, help="Ratio that phi looks at"),
    Column("Parameters", numeric=False),
)
BIAS_COLUMNS = (
    Column("Method", numeric=False),
    Column("Bias of the mean of w A", help="Against the mean of W A, which is unbiased"),
    Column("Variance over that of W A", help="Below 1 the correction is less noisy"),
    Column(
        "Break-even", help="Responses in a batch above which plain sequence weights are the better estimate"
    ),
)


def method_label(name: str, method: Json) -> str:
    """Return the label of a method, or its registered name."""
    return read_text(method.get("label"), fmt.clean(name))


def build_weights(result: Json) -> Section:
    """Return the tables of all methods; for views with little room, one of the main methods."""
    weights = result.get("weights")
    if reason := why_absent(weights):
        return Section("weights", TITLE, missing=reason)
    methods = {str(name): read_mapping(raw) for name, raw in read_mapping(weights).items()}
    chosen = read_text(read_mapping(result.get("recommendation")).get("method"))
    given = {name: method for name, method in methods.items() if not why_absent(method)}
    reads = read_text(result.get("weights_reads"), "the training side against the rollout side")
    k_hat = k_hat_cell(read_mapping(result.get("sequence")))
    tail = f"k-hat of W itself is {k_hat.text}" + (f" ({k_hat.detail})" if k_hat.detail else "")
    note = f"ESS of a clipped or bounded weight is high by construction; {tail}."
    if k_hat.reason:
        note += f" {k_hat.reason}."
    names = [name for name in sorted(MAIN, key=lambda name: name != chosen) if name in methods]
    names = names or list(methods)[: len(MAIN)]
    if chosen in methods and chosen not in names:
        names.insert(0, chosen)
    rest = len(methods) - len(names)
    brief = Table(
        "methods-main",
        f"Main methods, reading {reads}",
        MAIN_COLUMNS,
        tuple(_main_row(name, methods[name], chosen) for name in names),
        note=note + (f" {fmt.plural(rest, 'more method')} in report.html." if rest > 0 else ""),
    )
    tables = [_all(methods, chosen, f"All methods, reading {reads}", note), *_by_sign(given)]
    tables += [*length_tables(given), *_bias(given), _parameters(methods)]
    return Section(
        "weights",
        TITLE,
        lead=_lead(given),
        tables=tuple(tables),
        figures=("weights", "weight_curves_sequence", "weight_curves_token"),
        brief=(brief,),
    )


def _name_cell(name: str, method: Json, chosen: str) -> Cell:
    label = method_label(name, method)
    recommended = name == chosen
    return Cell(f"{label} (recommended)" if recommended else label, tone="pass" if recommended else "")


def _numbers(method: Json) -> tuple[Cell, ...]:
    return (
        estimate_cell(pick(method, "mean"), fmt.near_one),
        estimate_cell(pick(method, "ess"), fmt.percent),
        estimate_cell(pick(method, "kept_fraction"), fmt.percent),
        estimate_cell(pick(method, "positive_mass"), fmt.near_one),
        estimate_cell(pick(method, "negative_mass"), fmt.near_one),
        estimate_cell(pick(method, "mass_ratio"), fmt.near_one),
    )


def _missing(name: str, method: Json, reason: str, width: int) -> tuple[Cell, ...]:
    blank = Cell(fmt.NOT_AVAILABLE, reason=reason, tone="muted")
    return (Cell(method_label(name, method)), blank, *(Cell(""),) * (width - 2))


def _main_row(name: str, method: Json, chosen: str) -> tuple[Cell, ...]:
    if reason := why_absent(method):
        head, blank, *rest = _missing(name, method, reason, len(MAIN_COLUMNS) - 1)
        return (head, Cell(""), blank, *rest)
    *numbers, ratio = _numbers(method)
    # One interval a row, that of the number which findings are made of; the page has them all.
    short = (replace(cell, detail="", reason=cell.reason if cell.tone else "") for cell in numbers)
    return (_name_cell(name, method, chosen), Cell(read_text(method.get("level"))), *short, ratio)


def _all(methods: dict[str, Json], chosen: str, caption: str, note: str) -> Table:
    """Return every method by family, in the order in which the library lists them."""
    families: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for name, method in methods.items():
        families.setdefault(read_text(method.get("family"), "other"), []).append(name)
    rows = []
    for family, names in families.items():
        order = {name: place for place, name in enumerate(FAMILIES.get(family, ()))}
        for name in sorted(names, key=lambda name: order.get(name, len(order))):
            method = methods[name]
            if reason := why_absent(method):
                cells = _missing(name, method, reason, len(ALL_COLUMNS) - 1)
            else:
                cells = (
                    _name_cell(name, method, chosen),
                    *_numbers(method),
                    estimate_cell(pick(method, "gradient_mass"), fmt.near_one),
                    _empty_cell(method),
                    estimate_cell(pick(method, "max_weight_share"), fmt.percent),
                )
            rows.append((Cell(family), *cells))
    return Table("methods", caption, ALL_COLUMNS, tuple(rows), note=note, grouped=True)


def _empty_cell(method: Json) -> Cell:
    tokens, sequences = (
        estimate_cell(pick(method, f"empty_{unit}"), fmt.integer) for unit in ("tokens", "sequences")
    )
    return Cell(f"{tokens.text} / {sequences.text}", reason=tokens.reason)


def _by_sign(methods: dict[str, Json]) -> list[Table]:
    rows = []
    for name, method in methods.items():
        signs = read_mapping(method.get("by_sign"))
        cells: list[Cell] = []
        for word in ("positive", "negative"):
            cell = read_mapping(signs.get(word))
            cells += [
                _plain(pick(cell, "ess"), percent=True),
                _plain(pick(cell, "kept_fraction"), percent=True),
            ]
            cells += [_plain(pick(cell, "gradient_mass")), _empty_cell(cell)]
            cells.append(_plain(pick(cell, "max_weight_share"), percent=True))
        if signs:
            rows.append((Cell(method_label(name, method)), *cells))
    if not rows:
        return []
    caption = "By sign of the advantage"
    return [Table("weights-by-sign", caption, SIGN_COLUMNS, tuple(rows), collapsed=True)]


def _plain(number: object, *, percent: bool = False) -> Cell:
    """Write a number without its interval, which result.json has."""
    cell = estimate_cell(number, fmt.percent if percent else fmt.near_one)
    return Cell(cell.text, reason=cell.reason if cell.text == fmt.NOT_AVAILABLE else "", tone=cell.tone)


def _bias(methods: dict[str, Json]) -> list[Table]:
    """Return bias and variance against sequence importance sampling; one row where none can be had."""
    rows = []
    for name, method in methods.items():
        raw = read_mapping(method.get("against_sequence_is"))
        if raw:
            cells = (estimate_cell(pick(raw, key)) for key in ("bias", "variance_ratio"))
            even = read_number(raw.get("break_even"))
            last = Cell("-", tone="muted") if even.value is None else Cell(fmt.integer(even.value))
            rows.append((Cell(method_label(name, method)), *cells, last))
    if not rows:
        return []
    if all(row[1].text == fmt.NOT_AVAILABLE for row in rows):
        rows = [(Cell("all methods"), *row[1:]) for row in rows[:1]]
    caption = "Bias and variance against full sequence importance sampling"
    return [Table("weights-bias", caption, BIAS_COLUMNS, tuple(rows), collapsed=len(rows) > 1)]


def _parameters(methods: dict[str, Json]) -> Table:
    rows = tuple(
        (
            Cell(method_label(name, method)),
            Cell(fmt.clean(name), code=True),
            Cell(read_text(method.get("level"))),
            Cell(read_text(method.get("reads"))),
            Cell(fmt.scalar(read_mapping(method.get("parameters")))),
        )
        for name, method in methods.items()
        if not why_absent(method)
    )
    return Table("weights-parameters", "Parameters of the methods", PARAMETER_COLUMNS, rows, collapsed=True)


def _lead(methods: dict[str, Json]) -> str:
    kept, uneven = [], []
    for name, method in methods.items():
        label = method_label(name, method)
        value = read_number(method.get("kept_fraction")).value
        if value is not None:
            kept.append((value, label))
        ratio = read_number(method.get("mass_ratio"))
        if ratio.low is not None and ratio.high is not None and not ratio.low <= 1.0 <= ratio.high:
            uneven.append(label)
    if not kept:
        return "What share of tokens each method keeps cannot be had; the table gives the reasons."
    low, _ = min(kept)
    if low > 0.999:
        sentence = f"All {len(kept)} methods keep practically every token at this drift."
    else:
        strict = [label for value, label in sorted(kept) if value < 0.5]
        sentence = f"{len(kept) - len(strict)} of {len(kept)} methods take a gradient from at least half of the tokens"
        sentence += f"; {_listed(strict)} {'does' if len(strict) == 1 else 'do'} not." if strict else "."
    if uneven:
        sentence += f" {len(uneven)} shift the balance of signs by more than their interval."
    return sentence


def _listed(labels: list[str], most: int = 4) -> str:
    shown = labels if len(labels) <= most else [*labels[: most - 1], f"{len(labels) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
