"""Sequence, length and tails: what the drift sums up to over a response."""

from __future__ import annotations

from itertools import zip_longest

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    NOT_REPORTED,
    Json,
    pick,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    read_text,
    why_absent,
)
from mismatch_probe_reports.sections.length_law import length_tables
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell, fact, fact_table

TITLE = "Sequences, length and tails"
FIRST_FIT = "from here on a tail can be fitted at all"
NEVER_ENOUGH = "more than any run has: a tail with this k-hat does not become reliable with more sequences"


def k_hat_cell(sequence: Json) -> Cell:
    """Write the Pareto k-hat of the sequence weights, or its state, with its threshold and n."""
    k_hat = read_mapping(sequence.get("k_hat"))
    if not k_hat:
        return Cell(fmt.NOT_AVAILABLE, reason=why_absent(sequence.get("k_hat")), tone="muted")
    value, good, count = (read_number(k_hat.get(key)).value for key in ("value", "good_k", "n"))
    beside = [] if good is None else [f"threshold {fmt.number(good, 2)}"]
    beside += [] if count is None else [f"n = {fmt.integer(count)}"]
    detail, reason = ", ".join(beside), read_text(k_hat.get("reason"))
    state = read_text(k_hat.get("state"), "value")
    if state == "exact":
        return Cell("EXACT", detail=detail, reason=reason or "all weights are the same", tone="exact")
    if state != "value":
        tone = "warn" if state == "degenerate" else "muted"
        return Cell(state.upper(), detail=detail, reason=reason or NOT_REPORTED, tone=tone)
    if value is None:
        return Cell(fmt.NOT_AVAILABLE, detail=detail, reason=reason or NOT_REPORTED, tone="muted")
    tone = "" if good is None else ("pass" if value < good else "fail")
    return Cell(fmt.number(value, 2), detail=detail, reason=reason, tone=tone)


def _needed_cell(sequence: Json) -> Cell:
    """Write how many sequences this tail asks for, or why no number can be said."""
    k_hat = read_mapping(sequence.get("k_hat"))
    needed = pick(k_hat, "num_needed")
    state = read_text(k_hat.get("state"), "value")
    if needed.value is not None:
        return Cell(fmt.integer(needed.value), reason=FIRST_FIT if state == "too_few" else "")
    if state == "value" and read_number(k_hat.get("value")).value is not None and "num_needed" in k_hat:
        return Cell(fmt.NOT_AVAILABLE, reason=NEVER_ENOUGH, tone="muted")
    return Cell(fmt.NOT_AVAILABLE, reason=needed.reason, tone="muted")


def tail_sentence(sequence: Json) -> str:
    """Say what ESS and k-hat mean together; ESS is never stated without k-hat and n."""
    cell = k_hat_cell(sequence)
    ess = read_number(sequence.get("ess"))
    stated = (
        f"ESS n/a ({ess.reason})" if ess.value is None else f"ESS {fmt.percent(ess.value)} of the sequences"
    )
    described = f"k-hat {cell.text}" + (f" ({cell.detail})" if cell.detail else "")
    if cell.tone == "fail":
        verdict = "the tail is too heavy for this many sequences: ESS is biased upward and means little"
    elif cell.tone == "pass":
        verdict = "the tail is light enough for ESS to be read at face value"
    else:
        verdict = f"the tail is not judged: {cell.reason}" if cell.reason else "the tail is not judged"
    return f"{stated}, {described}: {verdict}."


def build_sequence(result: Json) -> Section:
    """Return log W, ESS with k-hat, the length law and quantiles."""
    sequence = result.get("sequence")
    if reason := why_absent(sequence):
        return Section("sequence", TITLE, missing=reason)
    sequence = read_mapping(sequence)
    tables = [_facts(sequence), _tails(sequence), _token_means(sequence), *length_tables(sequence)]
    tables += [_quantiles(sequence), _worst(sequence)]
    return Section(
        "sequence",
        TITLE,
        lead=tail_sentence(sequence),
        tables=tuple(table for table in tables if table.rows),
        figures=("log_weight_length",),
    )


def _facts(sequence: Json) -> Table:
    log_weight = read_mapping(sequence.get("log_weight"))
    rows = [
        fact(
            "Mean log W (nats)",
            pick(log_weight, "mean"),
            "Minus the KL of a whole response, so at most 0 in truth",
        ),
        fact(
            "Std of log W (nats)",
            pick(log_weight, "std"),
            "Above about 1, sequence weights stop being usable",
        ),
    ]
    count = read_number(sequence.get("num_sequences")).value
    note = (
        "" if count is None else f"n = {fmt.plural(int(count), 'sequence')}; 95 % intervals resample prompts."
    )
    return fact_table("sequence-facts", "Log-weight of a response: log W = sum of its log-ratios", rows, note)


def _tails(sequence: Json) -> Table:
    columns = (
        Column("Quantity", numeric=False),
        Column("Value"),
        Column("What it says", numeric=False, rank=2),
    )
    rows = (
        (
            Cell("Pareto k-hat"),
            k_hat_cell(sequence),
            Cell(
                "Tail index of W; above the threshold, means of W cannot be trusted at this n", tone="muted"
            ),
        ),
        (
            Cell("Sequences needed"),
            _needed_cell(sequence),
            Cell(
                "How many sequences a tail with this k-hat asks for before ESS can be relied on", tone="muted"
            ),
        ),
        (
            Cell("ESS (share of n)"),
            estimate_cell(pick(sequence, "ess"), fmt.percent),
            Cell("How many equally weighted sequences these are worth; read with k-hat only", tone="muted"),
        ),
        (
            Cell("Entropy ESS (share of n)"),
            estimate_cell(pick(sequence, "entropy_ess"), fmt.percent),
            Cell(
                "The same from the entropy of the weights; much larger means few weights rule ESS",
                tone="muted",
            ),
        ),
        (
            Cell("Largest weight's share"),
            estimate_cell(pick(sequence, "max_weight_share"), fmt.percent),
            Cell("Share of the total weight in one sequence", tone="muted"),
        ),
        (
            Cell("Mean W"),
            estimate_cell(pick(sequence, "mean_weight"), fmt.near_one),
            Cell("1 in truth; with a heavy tail a sample is nearly always below", tone="muted"),
        ),
        (
            Cell("Chi-squared"),
            estimate_cell(pick(sequence, "chi2")),
            Cell("Mean of W squared minus 1", tone="muted"),
        ),
        (
            Cell("Chi-squared, clamped"),
            estimate_cell(pick(sequence, "chi2_clamped")),
            Cell(f"With log W within 20 nats, as some frameworks log it; {_clamped(sequence)}", tone="muted"),
        ),
        (
            Cell("Renyi-2 (nats)"),
            estimate_cell(pick(sequence, "renyi2")),
            Cell("Log of the mean of W squared; never overflows", tone="muted"),
        ),
        (
            Cell("Design effect"),
            estimate_cell(pick(sequence, "design_effect")),
            Cell("By which the likeness of a prompt's responses shrinks the sample", tone="muted"),
        ),
    )
    return Table("sequence-tails", "Tails of the sequence weight", columns, rows)


def _clamped(sequence: Json) -> str:
    count = read_number(sequence.get("num_clamped")).value
    if count is None:
        return "how many sequences that moves is not reported"
    return f"moves {fmt.plural(int(count), 'sequence')}"


def _token_means(sequence: Json) -> Table:
    means = read_mapping(sequence.get("token_means"))
    rows = [
        fact("K3 (nats)", pick(means, "k3"), "Each response counts the same, however long"),
        fact("K1 (nats)", pick(means, "k1"), "Also the gap of log-perplexities, training minus rollout"),
        fact("K2 (nats)", pick(means, "k2"), "Half the mean square"),
        fact("Mean |log-ratio| (nats)", pick(means, "mean_abs_log_ratio"), "Typical size of the drift"),
    ]
    perplexity = read_mapping(sequence.get("perplexity"))
    if perplexity:
        rows += [
            fact(
                "Perplexity, rollout", pick(perplexity, "rollout"), "Mean over responses of exp(-mean log mu)"
            ),
            fact(
                "Perplexity, training", pick(perplexity, "train"), "Mean over responses of exp(-mean log pi)"
            ),
            fact(
                "Perplexity ratio",
                pick(perplexity, "ratio"),
                "Mean over responses of training over rollout",
                fmt.near_one,
            ),
        ]
    caption = "Averaged over responses: mean over a response's tokens first"
    return fact_table("sequence-token-means", caption, rows if means else [], "")


def _worst(sequence: Json) -> Table:
    rows = []
    for item in read_rows(sequence.get("worst")):
        place = [estimate_cell(pick(item, key), fmt.integer).text for key in ("cluster", "sequence")]
        numbers = [
            estimate_cell(pick(item, key))
            for key in ("log_weight", "mean_abs_log_ratio", "max_abs_log_ratio")
        ]
        rows.append((Cell(" / ".join(place)), estimate_cell(pick(item, "length"), fmt.integer), *numbers))
    columns = (
        Column("Prompt / sequence", numeric=False),
        Column("Tokens"),
        Column("Log W (nats)"),
        Column("Mean |log-ratio| (nats)"),
        Column("Max |log-ratio| (nats)"),
    )
    return Table("worst-sequences", "Worst sequences", columns, tuple(rows), collapsed=True)


def _quantiles(sequence: Json) -> Table:
    quantiles = read_mapping(read_mapping(sequence.get("log_weight")).get("quantiles"))
    rows = []
    for level, value in zip_longest(read_list(quantiles.get("levels")), read_list(quantiles.get("values"))):
        share = read_number(level).value
        if share is None:
            continue
        rows.append((Cell(fmt.level(share)), estimate_cell(value)))
    columns = (Column("Quantile", numeric=False), Column("Log W (nats)"))
    return Table("sequence-quantiles", "Quantiles of log W", columns, tuple(rows))
