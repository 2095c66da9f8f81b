"""The tables behind a recommendation: what was put forward for which goal, what to watch, what W contains where."""

from __future__ import annotations

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    pick,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    read_text,
)
from mismatch_probe_reports.tables import Cell, Column, Table, estimate_cell, interval

_CANDIDATES = (
    Column("Correction", numeric=False),
    Column("Set to", numeric=False, help="Fitted to this run, or its authors' values", rank=2),
    Column("Reads", numeric=False, rank=3),
    Column("Tokens kept", rank=2),
    Column("Mean weight", rank=4),
    Column(
        "ESS", help="Kish effective size of the weights, a share of the tokens or responses weighed", rank=4
    ),
    Column("Z+", help="Mean weight where A > 0", rank=4),
    Column("Z-", help="Mean weight where A < 0", rank=4),
    Column("Z- / Z+", help="Away from 1 the mean of the effective advantage shifts", rank=4),
    Column(
        "Far tenth",
        help="Share of the update that rests on the tenth of the responses with the largest |log W|",
    ),
    Column("Signal", help="Mean of |A| min(phi, 1) over the mean of |A|"),
    Column("Effective", help="Effective responses for each one generated"),
    Column("Fit for use", numeric=False, rank=2),
)
_GOALS = (
    Column("Goal", numeric=False),
    Column("Compared", numeric=False, rank=2),
    Column("Chosen", numeric=False),
    Column("Runner-up", numeric=False),
    Column("Runner-up less chosen", help="Of the number compared, paired over prompts", rank=2),
    Column("Why", numeric=False, rank=3),
)
_FITS = (
    Column("Correction", numeric=False),
    Column("Fitted to", numeric=False, rank=2),
    Column("Fitted", numeric=False, help="Before rounding and holding"),
    Column("On the half fitted", rank=3),
    Column("On the other half"),
    Column("Gap", rank=3),
    Column("Agrees with its target", numeric=False, rank=2),
)
_MONITOR = (
    Column("Watch", numeric=False),
    Column("This run"),
    Column("Alarm", help="One batch in a thousand of this drift is meant to lie beyond"),
    Column("Prompts", help="Of the batch that the alarm is for", rank=4),
    Column("Logged as", numeric=False, rank=2),
)


def recommendation_tables(recommendation: Json) -> list[Table]:
    """The tables that a recommendation has; none on numbers that are not to be trusted."""
    candidates = {
        str(key): read_mapping(raw) for key, raw in read_mapping(recommendation.get("candidates")).items()
    }
    tables = []
    goals = read_mapping(recommendation.get("goals"))
    if goals:
        rows = tuple(_goal_row(str(name), read_mapping(raw), candidates) for name, raw in goals.items())
        tables.append(
            Table("recommendation-goals", "What serves which goal, and what comes next to it", _GOALS, rows)
        )
    if candidates:
        rows = tuple(_candidate_row(candidate) for candidate in candidates.values())
        caption = "What was put forward, on the responses of this run"
        tables.append(Table("recommendation-candidates", caption, _CANDIDATES, rows, collapsed=True))
    fits = tuple(_fit_row(candidate) for candidate in candidates.values() if candidate.get("fit"))
    if fits:
        caption = "How hyperparameters were fitted, and what they come to on prompts that were not fitted"
        tables.append(Table("recommendation-fits", caption, _FITS, fits, collapsed=True))
    watched = [read_mapping(row) for row in read_rows(recommendation.get("monitor"))]
    if watched:
        prompts = read_number(watched[0].get("num_prompts"))
        batch = "a batch" if prompts.value is None else f"a batch of {fmt.integer(prompts.value)} prompts"
        note = f"Alarms are for {batch}; a smaller one varies more. Beyond them something other than this drift is at work."
        rows = tuple(_monitor_row(row) for row in watched)
        tables.append(
            Table("recommendation-monitor", "What to watch during training", _MONITOR, rows, note=note)
        )
    reads = read_mapping(recommendation.get("reads_by_framework"))
    if reads:
        columns = (Column("Framework", numeric=False), Column("Its exported config", numeric=False))
        rows = tuple((Cell(fmt.clean(name)), Cell(read_text(text))) for name, text in sorted(reads.items()))
        caption = "What the weights contain in each framework's recipe"
        tables.append(Table("recommendation-reads", caption, columns, rows, collapsed=True))
    return tables


def label_of(candidates: object, key: object) -> str:
    """The label of a candidate by its key, or "none"."""
    candidate = read_mapping(read_mapping(candidates).get(str(key))) if key else {}
    return read_text(candidate.get("label"), "none")


def _goal_row(name: str, choice: Json, candidates: Json) -> tuple[Cell, ...]:
    difference = choice.get("difference")
    return (
        Cell(fmt.clean(name)),
        Cell(read_text(choice.get("criterion"))),
        Cell(label_of(candidates, choice.get("chosen"))),
        Cell(label_of(candidates, choice.get("runner_up"))),
        Cell("") if difference is None else estimate_cell(difference, _points),
        Cell(read_text(choice.get("because"))),
    )


def _points(value: float) -> str:
    """A difference of shares, in points of a hundred."""
    return f"{100 * value:+.2f}"


def _candidate_row(candidate: Json) -> tuple[Cell, ...]:
    against = "; ".join(read_text(reason) for reason in read_list(candidate.get("against")))
    parameters = read_mapping(candidate.get("parameters"))
    shown = ", ".join(f"{fmt.clean(name)} {_value(value)}" for name, value in parameters.items())
    fit = read_mapping(candidate.get("fit"))
    return (
        Cell(read_text(candidate.get("label"))),
        Cell(shown, detail=_intervals(read_mapping(fit.get("thresholds")))),
        Cell(read_text(candidate.get("reads"))),
        estimate_cell(pick(candidate, "kept_fraction"), fmt.percent),
        estimate_cell(pick(candidate, "mean_weight"), fmt.near_one),
        estimate_cell(pick(candidate, "ess"), fmt.percent),
        estimate_cell(pick(candidate, "positive_mass"), fmt.near_one),
        estimate_cell(pick(candidate, "negative_mass"), fmt.near_one),
        estimate_cell(pick(candidate, "mass_ratio"), fmt.near_one),
        estimate_cell(pick(candidate, "influence"), fmt.percent),
        estimate_cell(pick(candidate, "signal"), fmt.percent),
        estimate_cell(pick(candidate, "effective_responses"), fmt.percent),
        Cell(f"no: {against}", tone="fail") if against else Cell("yes", tone="pass"),
    )


def _fit_row(candidate: Json) -> tuple[Cell, ...]:
    fit = read_mapping(candidate.get("fit"))
    check = read_mapping(fit.get("check"))
    level = read_number(fit.get("level"))
    target = read_text(fit.get("target"))
    shares = target.startswith("share")
    write = fmt.percent if shares else fmt.number
    thresholds = {str(name): read_number(raw) for name, raw in read_mapping(fit.get("thresholds")).items()}
    fitted = [estimate_cell(value) for value in thresholds.values()]
    shown = (
        f"{fmt.clean(name)} {cell.text} {cell.detail}".strip()
        for name, cell in zip(thresholds, fitted, strict=True)
    )
    halves = (
        [estimate_cell(pick(check, key), write) for key in ("fitted", "held_out", "gap")]
        if check
        else [Cell("")] * 3
    )
    meets = check.get("meets")
    verdict = (
        Cell("not known", tone="muted")
        if meets is None
        else Cell("yes" if meets else "no", tone="pass" if meets else "warn")
    )
    return (
        Cell(read_text(candidate.get("label"))),
        Cell(target if level.value is None else f"{target} {write(level.value)}"),
        Cell(
            ", ".join(shown), reason="; ".join(dict.fromkeys(cell.reason for cell in fitted if cell.reason))
        ),
        *halves,
        verdict,
    )


def _monitor_row(row: Json) -> tuple[Cell, ...]:
    alarm = read_number(row.get("alarm"))
    side = read_text(row.get("side"), "above")
    reason = read_text(row.get("reason"))
    names = [read_mapping(item) for item in read_rows(row.get("logged"))]
    logged = "; ".join(f"{read_text(item.get('framework'))} {read_text(item.get('name'))}" for item in names)
    return (
        Cell(read_text(row.get("quantity"))),
        estimate_cell(pick(row, "expected"), fmt.number),
        Cell(fmt.NOT_AVAILABLE, reason=reason, tone="muted")
        if alarm.value is None
        else Cell(f"{side} {fmt.number(alarm.value)}"),
        estimate_cell(row.get("num_prompts"), fmt.integer),
        Cell(logged),
    )


def _intervals(thresholds: Json) -> str:
    """The intervals of what was fitted, in the order of the hyperparameters."""
    found = (interval(read_number(raw)) for raw in thresholds.values())
    return ", ".join(text for text in found if text)


def _value(value: object) -> str:
    return fmt.number(float(value)) if isinstance(value, int | float) else fmt.clean(value)
