"""Tuning: hyperparameters fitted to this run, each judged on prompts that did not tune it."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import Json, pick, read_mapping, read_number, read_text, why_absent
from mismatch_probe_reports.sections.sequence import k_hat_cell
from mismatch_probe_reports.tables import Cell, Column, Section, Table, Writer, estimate_cell

TITLE = "Tuning: hyperparameters fitted to this run"
MISSING = "nothing was tuned; run: mismatch-probe tune RUN --method vespo --budget 1"
KERNEL_ROWS: tuple[tuple[str, str, str, Writer], ...] = (
    ("lambda", "rate", "Smallest rate that keeps the budget", fmt.number),
    ("Z", "tilt.mass", "Mean of phi: the share of the signal that is left", fmt.near_one),
    ("E_Q[W]", "tilt.mean_weight", "Mean weight of the reweighted sample, held to the budget", fmt.number),
    (
        "ESS of phi",
        "tilt.ess",
        "Effective size as a share of the responses; high by construction",
        fmt.percent,
    ),
    ("W* = c1 / c2", "tilt.peak_weight", "Where phi is largest", fmt.number),
    ("K of Proposition 3.1", "tilt.variance_constant", "sup phi(W) / W", fmt.number),
    ("Bound Z K E_Q[W]", "tilt.bound", "What the mean of phi squared cannot pass", fmt.number),
    ("Mean of phi squared", "tilt.second_moment", "What it is", fmt.number),
)


def build_tuning(result: Json) -> Section:
    """Return a table for each tuned method."""
    raw = result.get("tuning")
    if raw is None:
        return Section("tuning", TITLE, missing=MISSING)
    if reason := why_absent(raw):
        return Section("tuning", TITLE, missing=reason)
    tables: list[Table] = []
    said = []
    for place, (name, tuned) in enumerate(read_mapping(raw).items()):
        fields = read_mapping(tuned)
        made = _kernels if "positive" in fields else _thresholds
        tables.append(made(f"tuning-{place}", fmt.clean(name), fields))
        said.append(_verdict(str(name), fields))
    return Section("tuning", TITLE, lead=" ".join(said), tables=tuple(tables))


def _setting(fields: Json) -> str:
    parameters = read_mapping(fields.get("parameters"))
    return (
        ", ".join(f"{fmt.clean(key)} = {_written(value)}" for key, value in parameters.items())
        or "no parameters"
    )


def _written(value: object) -> str:
    number = read_number(value).value
    return fmt.scalar(value) if number is None else f"{number:.6g}"


def _verdict(name: str, fields: Json) -> str:
    checks = [read_mapping(fields.get(sign)).get("check") for sign in ("positive", "negative")]
    checks = checks if "positive" in fields else [fields.get("check")]
    verdicts = [read_mapping(check).get("meets") for check in checks]
    if all(verdict is True for verdict in verdicts):
        judged = "held-out prompts agree with the target"
    elif any(verdict is False for verdict in verdicts):
        judged = "held-out prompts miss the target"
    else:
        judged = "too few prompts to judge it on held-out ones"
    return f"{fmt.clean(name)}: {_setting(fields)}; {judged}."


def _kernels(anchor: str, name: str, fields: Json) -> Table:
    """Return VESPO's fit, one column a sign."""
    signs = [read_mapping(fields.get(sign)) for sign in ("positive", "negative")]
    rows = [
        (
            Cell("alpha = c1"),
            *(estimate_cell(pick(sign, "alpha"), fmt.tick) for sign in signs),
            _what("Power that was given"),
        ),
        (
            Cell("Budget C"),
            *(estimate_cell(pick(sign, "budget"), fmt.tick) for sign in signs),
            _what("E_Q[W] may be this"),
        ),
    ]
    for title, path, meaning, write in KERNEL_ROWS:
        rows.append((Cell(title), *(_at(sign, path, write) for sign in signs), _what(meaning)))
    for title, key, meaning in (
        ("E_Q[W], fitted half", "fitted", "On the half of the prompts that a second fit used"),
        ("E_Q[W], held-out half", "held_out", "The same rate on the other half"),
        ("Gap", "gap", "Held-out less fitted, both errors in its interval"),
    ):
        rows.append((Cell(title), *(_check(sign, key) for sign in signs), _what(meaning)))
    rows.append(
        (
            Cell("Meets the budget"),
            *(_meets(sign) for sign in signs),
            _what("On held-out prompts, within the interval"),
        )
    )
    notes = _tail(fields)
    notes += [
        f"{title}: {note}."
        for title, sign in zip(("A > 0", "A < 0"), signs, strict=True)
        if (note := read_text(sign.get("note")))
    ]
    if fields.get("assumed") is True:
        notes.append("The run has no advantages: both signs were fitted to every response.")
    columns = (
        Column("Quantity", numeric=False),
        *(
            Column(f"{title} (n = {estimate_cell(pick(sign, 'n'), fmt.integer).text})")
            for title, sign in zip(("A > 0", "A < 0"), signs, strict=True)
        ),
        Column("What it says", numeric=False, rank=3),
    )
    caption = f"{name}: rates for a budget on E_Q[W]; set {_setting(fields)}"
    return Table(anchor, caption, columns, tuple(rows), note=" ".join(notes))


def _what(text: str) -> Cell:
    return Cell(text, tone="muted")


def _at(record: Json, path: str, write: Writer) -> Cell:
    head, _, last = path.rpartition(".")
    fields = read_mapping(record.get(head)) if head else record
    if last in fields and fields[last] is None:
        return Cell(fmt.NOT_AVAILABLE, reason=read_text(record.get("note")), tone="muted")
    return estimate_cell(pick(fields, last), write)


def _check(record: Json, key: str) -> Cell:
    check = read_mapping(record.get("check"))
    if not check:
        return Cell(fmt.NOT_AVAILABLE, reason="too few prompts to hold some out", tone="muted")
    return estimate_cell(pick(check, key), fmt.number)


def _meets(record: Json) -> Cell:
    meets = read_mapping(record.get("check")).get("meets")
    if meets is None:
        return Cell("not judged", tone="muted")
    return Cell("yes", tone="pass") if meets else Cell("no", tone="fail")


def _thresholds(anchor: str, name: str, fields: Json) -> Table:
    """Return the thresholds of a method, with what they keep and the check."""
    target = read_text(fields.get("target"))
    level = estimate_cell(pick(fields, "level"), fmt.percent).text
    wanted = f"an effective size of {level}" if target == "ess" else f"{level} kept"
    rows = [
        (Cell(f"{fmt.clean(key)}"), estimate_cell(raw, _six), _what("Threshold to set"))
        for key, raw in read_mapping(fields.get("thresholds")).items()
    ]
    if fields.get("centre") is not None:
        rows.append(
            (
                Cell("Centre of the band (nats)"),
                estimate_cell(pick(fields, "centre")),
                _what("log of its middle"),
            )
        )
        rows.append(
            (
                Cell("-kappa (nats)"),
                estimate_cell(pick(fields, "minus_kappa")),
                _what("Mean log-ratio per token"),
            )
        )
    rows += [
        (
            Cell("Kept"),
            estimate_cell(pick(fields, "kept"), fmt.percent),
            _what("Share of tokens with a gradient"),
        ),
        (
            Cell("ESS of phi"),
            estimate_cell(pick(fields, "ess"), fmt.percent),
            _what("Effective size of the weights"),
        ),
        (
            Cell("Fitted half"),
            _check_share(fields, "fitted"),
            _what("What the target measures, where it was fitted"),
        ),
        (
            Cell("Held-out half"),
            _check_share(fields, "held_out"),
            _what("The same thresholds on the other half"),
        ),
        (Cell("Gap"), _check(fields, "gap"), _what("Held-out less fitted, both errors in its interval")),
        (Cell("Meets the target"), _meets(fields), _what("On held-out prompts, within the interval")),
    ]
    columns = (
        Column("Quantity", numeric=False),
        Column("Value"),
        Column("What it says", numeric=False, rank=2),
    )
    caption = f"{name}: thresholds for {wanted}; set {_setting(fields)}"
    return Table(anchor, caption, columns, tuple(rows), note=" ".join(_tail(fields)))


def _tail(fields: Json) -> list[str]:
    """Say how heavy the tail of W is, without which no effective size is read."""
    if not read_mapping(fields.get("k_hat")):
        return []
    cell = k_hat_cell(fields)
    return [f"k-hat of W itself is {cell.text}" + (f" ({cell.detail})." if cell.detail else ".")]


def _check_share(record: Json, key: str) -> Cell:
    cell = _check(record, key)
    check = read_mapping(record.get("check"))
    return estimate_cell(pick(check, key), fmt.percent) if check else cell


def _six(value: float) -> str:
    return f"{value:.6g}"
