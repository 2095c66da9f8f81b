"""Beyond this run: other hyperparameters, longer responses, staler weights, and VESPO's ablations."""

from __future__ import annotations

from collections.abc import Iterable

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    look_up,
    pick,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.sections.sequence import k_hat_cell
from mismatch_probe_reports.tables import Cell, Column, Section, Table, Writer, estimate_cell

TITLE = "Simulation: other hyperparameters, lengths and stalenesses"
MISSING = "not simulated; run: mismatch-probe simulate RUN"
RANGES: tuple[tuple[str, str, Writer], ...] = (
    ("mean", "Mean phi", fmt.near_one),
    ("ess", "ESS", fmt.percent),
    ("kept_fraction", "Kept", fmt.percent),
    ("mass_ratio", "Z- / Z+", fmt.near_one),
)
SWEPT: tuple[tuple[str, str, Writer], ...] = (
    ("positive_mass", "Z+", fmt.near_one),
    ("negative_mass", "Z-", fmt.near_one),
    *RANGES,
)
ABLATED: tuple[tuple[str, str, Writer], ...] = (
    ("positive_mass", "Z+", fmt.near_one),
    ("negative_mass", "Z-", fmt.near_one),
    ("mass_ratio", "Z- / Z+", fmt.near_one),
    ("ess", "ESS", fmt.percent),
)


def build_simulation(result: Json) -> Section:
    """Return sweeps, extrapolations and ablations."""
    raw = result.get("simulation")
    if raw is None:
        return Section("simulation", TITLE, missing=MISSING)
    if reason := why_absent(raw):
        return Section("simulation", TITLE, missing=reason)
    simulation = read_mapping(raw)
    sweeps = read_rows(simulation.get("sweeps"))
    extrapolation = read_mapping(simulation.get("extrapolation"))
    grids = [_by_length(extrapolation), _by_staleness(extrapolation)]
    ablations = [_ablations(simulation)]
    overview = [_ranges(sweeps)]
    short = [table for table in (*overview, *grids, *ablations) if table.rows]
    full = [table for table in (*grids, *ablations, *overview) if table.rows]
    return Section(
        "simulation",
        TITLE,
        lead=_lead(extrapolation),
        tables=(*full, *(_settings(sweep, place) for place, sweep in enumerate(sweeps))),
        figures=("weight_sweep", "weight_extrapolation"),
        notes=(*_notes(simulation), *_tail(result)),
        brief=tuple(short),
    )


def points_of(extrapolation: Json) -> dict[tuple[int, int], Json]:
    """Return the points that could be had, by length and staleness."""
    made = {}
    for point in read_rows(extrapolation.get("points")):
        length, staleness = (read_number(point.get(key)).value for key in ("length", "staleness"))
        if length is not None and staleness is not None and read_mapping(point.get("responses")):
            made[int(length), int(staleness)] = point
    return made


def method_labels(extrapolation: Json) -> dict[str, str]:
    """Return the labels of what was extrapolated, by key."""
    return {
        str(key): read_text(label, fmt.clean(key))
        for key, label in read_mapping(extrapolation.get("methods")).items()
    }


def _lead(extrapolation: Json) -> str:
    points = points_of(extrapolation)
    fresh = sorted(length for length, staleness in points if staleness == 1)
    if not fresh:
        return "No length could be simulated."
    first, last = fresh[0], fresh[-1]
    said = []
    for key, label in method_labels(extrapolation).items():
        ends = [_mass(points[length, 1], key, "positive_mass") for length in (first, last)]
        if ends[0] is not None and ends[1] is not None:
            said.append((ends[0] - ends[1], label, ends[0], ends[1]))
    if not said:
        return "No method could be simulated."
    lost, label, before, after = max(said)
    if lost < 0.01:
        return (
            f"From {fmt.integer(first)} to {fmt.integer(last)} tokens no method loses more than 1 % "
            "of its positive signal."
        )
    return (
        f"From {fmt.integer(first)} to {fmt.integer(last)} tokens {label} loses most of its positive signal: "
        f"Z+ goes from {fmt.number(before)} to {fmt.number(after)}."
    )


def _mass(point: Json, key: str, quantity: str) -> float | None:
    return read_number(look_up(point, "responses", key, quantity)).value


def _notes(simulation: Json) -> tuple[str, ...]:
    notes = [
        "Lengths: measured responses end to end, or stretches of them, so that longer ones are optimistic where errors "
        "persist. W = (pi / pi_old) (pi_old / mu): the mismatch is measured, staleness comes on top of it.",
    ]
    if read_text(simulation.get("sign_basis")) == "assumed":
        notes.append("The run has no advantages: both signs were tried on every response.")
    reasons = dict.fromkeys(
        read_text(point.get("reason"))
        for point in read_rows(look_up(simulation, "extrapolation", "points"))
        if not read_mapping(point.get("responses"))
    )
    notes += [f"Left out: {reason}." for reason in reasons if reason]
    return tuple(notes)


def _tail(result: Json) -> tuple[str, ...]:
    """Say how heavy the tail of W is, without which no effective size is read."""
    sequence = read_mapping(result.get("sequence"))
    if not sequence:
        return ()
    cell = k_hat_cell(sequence)
    beside = f" ({cell.detail})" if cell.detail else ""
    return (
        f"ESS of a clipped or bounded weight is high by construction; k-hat of W itself is {cell.text}{beside}.",
    )


def _sweep_title(sweep: Json) -> str:
    label = read_text(sweep.get("label"), read_text(sweep.get("method")))
    return f"{label}: {' x '.join(fmt.clean(key) for key in read_mapping(sweep.get('grid')))}"


def _ranges(sweeps: list[Json]) -> Table:
    """Return one row a sweep: how far each number moves."""
    rows = []
    for sweep in sweeps:
        points = read_rows(sweep.get("points"))
        cells = (_range(points, key, write) for key, _, write in RANGES)
        rows.append((Cell(_sweep_title(sweep)), Cell(fmt.integer(len(points))), *cells))
    columns = (
        Column("Sweep", numeric=False),
        Column("Settings", rank=3),
        *(Column(title) for _, title, _ in RANGES),
    )
    return Table(
        "sweeps", "Sweeps: lowest to highest", columns, tuple(rows), note="The page has every setting."
    )


def _range(points: list[Json], key: str, write: Writer) -> Cell:
    values = [value for point in points if (value := read_number(point.get(key)).value) is not None]
    if not values:
        reasons = (pick(point, key).reason for point in points)
        return Cell(
            fmt.NOT_AVAILABLE, reason=next((reason for reason in reasons if reason), ""), tone="muted"
        )
    low, high = write(min(values)), write(max(values))
    if low == high:
        return Cell(low)
    return Cell(f"{low.removesuffix(' %')} to {high}" if low.endswith(" %") else f"{low} to {high}")


def _settings(sweep: Json, place: int) -> Table:
    """Return every setting of a sweep; the default ones are named."""
    grid, defaults = read_mapping(sweep.get("grid")), read_mapping(sweep.get("defaults"))
    rows = []
    for point in read_rows(sweep.get("points")):
        values = read_mapping(point.get("values"))
        default = bool(defaults) and all(values.get(key) == defaults.get(key) for key in grid)
        name = ", ".join(f"{fmt.clean(key)} = {fmt.scalar(values.get(key))}" for key in grid)
        cells = (_value(point, key, write) for key, _, write in SWEPT)
        rows.append((Cell(f"{name} (default)" if default else name, tone="info" if default else ""), *cells))
    count = read_number(sweep.get("num_sequences")).value
    caption = _sweep_title(sweep) + ("" if count is None else f" (n = {fmt.plural(int(count), 'response')})")
    columns = (Column("Setting", numeric=False), *(Column(title) for _, title, _ in SWEPT))
    return Table(f"sweep-{place}", caption, columns, tuple(rows), collapsed=True)


def _value(record: Json, key: str, write: Writer) -> Cell:
    """Write a value without its interval, which result.json has."""
    if reason := read_text(record.get("reason")) if record.get("available") is False else "":
        return Cell(fmt.NOT_AVAILABLE, reason=reason, tone="muted")
    cell = estimate_cell(pick(record, key), write)
    return Cell(cell.text, reason=cell.reason if cell.tone else "", tone=cell.tone)


def _by_length(extrapolation: Json) -> Table:
    """Return Z+ / Z- of fresh weights, one column a length."""
    points = points_of(extrapolation)
    lengths = sorted(length for length, staleness in points if staleness == 1)
    longest = read_number(extrapolation.get("longest_measured")).value or 0.0
    titles = [f"{fmt.integer(length)}{'' if length <= longest else ' *'}" for length in lengths]
    return _grid(
        extrapolation,
        "extrapolation-length",
        "Z+ / Z- at other lengths of response (tokens), fresh weights",
        titles,
        [points[length, 1] for length in lengths],
        note=f"* longer than any measured response ({fmt.integer(longest)} tokens)." if titles else "",
    )


def _by_staleness(extrapolation: Json) -> Table:
    """Return Z+ / Z- of the longest measured length, one column a staleness; empty where there is only one."""
    points = points_of(extrapolation)
    longest = read_number(extrapolation.get("longest_measured")).value or 0.0
    measured = [length for length, _ in points if length <= longest] or [length for length, _ in points]
    length = max(measured, default=0)
    stalenesses = sorted(staleness for at, staleness in points if at == length)
    if len(stalenesses) < 2:
        stalenesses = []
    return _grid(
        extrapolation,
        "extrapolation-staleness",
        f"Z+ / Z- at staleness N (updates that one rollout batch feeds), {fmt.integer(length)} tokens",
        [f"N = {staleness}" for staleness in stalenesses],
        [points[length, staleness] for staleness in stalenesses],
    )


def _grid(
    extrapolation: Json, name: str, caption: str, titles: list[str], points: Iterable[Json], note: str = ""
) -> Table:
    drawn = list(points)
    rows = []
    for key, label in method_labels(extrapolation).items():
        cells = []
        for point in drawn:
            response = read_mapping(look_up(point, "responses", key))
            signs = [_value(response, quantity, _three) for quantity in ("positive_mass", "negative_mass")]
            cells.append(
                Cell(" / ".join(cell.text for cell in signs), reason=signs[0].reason, tone=signs[0].tone)
            )
        if titles:
            rows.append((Cell(label), *cells))
    return Table(
        name,
        caption,
        (Column("Method", numeric=False), *(Column(title) for title in titles)),
        tuple(rows),
        note=note,
    )


def _three(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else fmt.number(value)


def _ablations(simulation: Json) -> Table:
    """Return VESPO's variants on the run itself and at the greatest length that was tried."""
    ablations = read_mapping(simulation.get("ablations"))
    points = points_of(ablations)
    extra = sorted(points)[1:]
    titles = [f"{fmt.integer(length)} tokens, N = {staleness}" for length, staleness in extra]
    rows = []
    for key, raw in read_mapping(ablations.get("variants")).items():
        variant = read_mapping(raw)
        cells = [estimate_cell(pick(variant, quantity), write) for quantity, _, write in ABLATED]
        for place in extra:
            response = read_mapping(look_up(points[place], "responses", str(key)))
            both = (
                _value(response, quantity, _three).text for quantity in ("positive_mass", "negative_mass")
            )
            cells.append(Cell(" / ".join(both)))
        rows.append(
            (
                Cell(read_text(variant.get("question"))),
                Cell(read_text(variant.get("title"), fmt.clean(key))),
                *cells,
            )
        )
    columns = (
        Column("Choice undone", numeric=False),
        Column("Variant", numeric=False),
        *(Column(title) for _, title, _ in ABLATED),
        *(Column(f"Z+ / Z-, {title}", rank=3) for title in titles),
    )
    gaussian = read_mapping(ablations.get("gaussian"))
    reference = [
        read_number(gaussian.get(key)).value for key in ("variance", "positive_mass", "negative_mass")
    ]
    note = ""
    if all(value is not None for value in reference):
        spread, positive, negative = (value for value in reference if value is not None)
        note = (
            f"Were log W normal with mean weight 1 and this run's variance ({fmt.number(spread)}), VESPO would have "
            f"Z+ {fmt.near_one(positive)} and Z- {fmt.near_one(negative)}."
        )
    return Table("ablations", "VESPO's ablations on this run", columns, tuple(rows), note=note, grouped=True)
