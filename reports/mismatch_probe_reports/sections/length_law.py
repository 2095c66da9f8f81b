"""The length law: how the log-weight of a response grows with its length."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    NOT_REPORTED,
    Json,
    Number,
    look_up,
    pick,
    read_float,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.sections.buckets import bucket_range
from mismatch_probe_reports.tables import Cell, Column, Table, estimate_cell, fact, fact_table

NO_KAPPA = "kappa is not measurably above 0"


def length_tables(sequence: Json) -> tuple[Table, ...]:
    """Return the law, longer responses, the variance of blocks of tokens, and log W by length of the response.

    Args:
        sequence: The section `sequence` of a result.
    """
    return _law(sequence), _extrapolation(sequence), _variance_time(sequence), _by_length(sequence)


def _law(sequence: Json) -> Table:
    law = read_mapping(sequence.get("length_law"))
    if reason := why_absent(sequence.get("length_law")):
        law = {"reason": reason}
    ratio = pick(law, "gaussian_ratio")
    rows = [
        fact("Kappa (nats per token)", pick(law, "kappa"), "Log W falls by this much per token of response"),
        fact(
            "Variance per token",
            pick(law, "variance_per_token"),
            "Growth of the variance of log W, nats squared",
        ),
        fact(
            "Gaussian ratio G",
            pick(sequence, "gaussian_ratio")
            if ratio.value is None and ratio.reason == NOT_REPORTED
            else ratio,
            "Variance over -2 x mean: 1 for pure noise; above 1 heavy tails; far below 1 a shift",
        ),
        fact(
            "Slope (2H)",
            pick(law, "slope"),
            "Of the variance of blocks, n blocks: 1 for independent errors; above 1, errors persist",
        ),
        fact(
            "Horizon (tokens)",
            _horizon(law),
            "Length at which sequence weights keep an ESS of 10 %",
            fmt.integer,
        ),
        fact(
            "Horizon from kappa (tokens)",
            _horizon_from_kappa(law),
            "The same from kappa alone, if log W were Gaussian",
            fmt.integer,
        ),
    ]
    return fact_table("length-law", "Length law", rows, _lengths(law))


def _horizon(law: Json) -> Number:
    """Return the horizon with its interval; where there is none, with what the variance lacks."""
    horizon = pick(law, "horizon_tokens")
    if horizon.value is None and (reason := read_text(law.get("horizon_reason"))):
        return replace(horizon, reason=reason)
    low, high = read_float(law.get("horizon_low")), read_float(law.get("horizon_high"))
    if horizon.value is not None and (low is None or high is None):
        lacking = pick(law, "variance_per_token").reason or NOT_REPORTED
        return replace(horizon, reason=f"no interval: {lacking}")
    return replace(horizon, low=low, high=high)


def _horizon_from_kappa(law: Json) -> Number:
    horizon = pick(law, "horizon_from_kappa")
    if horizon.value is None and horizon.reason == NOT_REPORTED and "horizon_from_kappa" in law:
        return replace(horizon, reason=NO_KAPPA)
    return horizon


def _lengths(law: Json) -> str:
    count, mean, longest = (
        read_number(law.get(key)).value for key in ("num_sequences", "mean_length", "max_length")
    )
    if count is None or mean is None or longest is None:
        return ""
    tokens = f"{fmt.number(mean)} tokens on average, {fmt.integer(longest)} at most"
    return f"n = {fmt.plural(int(count), 'sequence')} of {tokens}."


def _extrapolation(sequence: Json) -> Table:
    longest = read_number(look_up(sequence, "length_law", "max_length")).value
    rows = []
    for item in read_rows(look_up(sequence, "length_law", "extrapolation")):
        length = read_number(item.get("length")).value
        seen = longest is not None and length is not None and length <= longest
        cells = (estimate_cell(pick(item, key)) for key in ("mean_log_weight", "variance"))
        rows.append(
            (
                estimate_cell(pick(item, "length"), fmt.integer),
                Cell("yes" if seen else "no, extrapolated"),
                *cells,
                estimate_cell(pick(item, "ess"), fmt.percent),
            )
        )
    columns = (
        Column("Length T (tokens)", numeric=False),
        Column("Measured", numeric=False),
        Column("Mean log W (nats)"),
        Column("Var(log W) (nats squared)"),
        Column("ESS of sequence weights"),
    )
    note = (
        "From the law above; intervals widen with the distance from what was measured, and beyond 8 times the "
        "longest response nothing is said."
    )
    return Table("length-extrapolation", "Responses as long as this", columns, tuple(rows), note)


def _by_length(sequence: Json) -> Table:
    rows = []
    for bucket in read_rows(look_up(sequence, "length_law", "buckets")):
        rows.append(
            (
                Cell(bucket_range(bucket)),
                estimate_cell(pick(bucket, "mean_length")),
                estimate_cell(pick(bucket, "n"), fmt.integer),
                estimate_cell(pick(bucket, "mean_log_weight")),
                estimate_cell(pick(bucket, "variance")),
                estimate_cell(pick(bucket, "gaussian_ratio")),
            )
        )
    columns = (
        Column("Length T (tokens)", numeric=False),
        Column("Mean T"),
        Column("Sequences"),
        Column("Mean log W (nats)"),
        Column("Var(log W) (nats squared)"),
        Column("Gaussian ratio G"),
    )
    return Table(
        "length-buckets", "Log W by response length (both ends belong to the range)", columns, tuple(rows)
    )


def _variance_time(sequence: Json) -> Table:
    growth = read_mapping(look_up(sequence, "length_law", "variance_time"))
    series = [read_list(growth.get(key)) for key in ("block_sizes", "variances", "num_blocks")]
    rows = [
        (estimate_cell(size, fmt.integer), estimate_cell(variance), estimate_cell(count, fmt.integer))
        for size, variance, count in zip_longest(*series)
    ]
    columns = (
        Column("Tokens T in a block", numeric=False),
        Column("Variance of the sum (nats squared)"),
        Column("Blocks"),
    )
    note = "Sums over T consecutive tokens; 2H is the slope of this column against T, both on log scales."
    return Table("variance-time", "Variance against T inside responses", columns, tuple(rows), note)
