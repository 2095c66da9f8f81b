"""Token drift: how far apart the two sides are, token by token."""

from __future__ import annotations

from itertools import zip_longest

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import (
    Json,
    pick,
    read_list,
    read_mapping,
    read_number,
    read_rows,
    why_absent,
)
from mismatch_probe_reports.sections.buckets import bucket_tables
from mismatch_probe_reports.sections.dashboards import dashboard_table
from mismatch_probe_reports.tables import Cell, Column, Section, Table, estimate_cell, fact, fact_table

TITLE = "Token drift"


def build_token(result: Json) -> Section:
    """Return key numbers, quantiles, extreme tokens, buckets and framework names of the per-token log-ratio."""
    token = result.get("token")
    if reason := why_absent(token):
        return Section("token", TITLE, missing=reason)
    token = read_mapping(token)
    tables = [
        _facts(token),
        _binary(token),
        _quantiles(read_mapping(token.get("quantiles"))),
        _extreme(token),
    ]
    tables += bucket_tables(token)
    tables += [dashboard_table(token), _worst(token)]
    return Section(
        "token",
        TITLE,
        lead=_lead(token),
        tables=tuple(table for table in tables if table.rows),
        figures=("token_probability", "ecdf"),
    )


def _lead(token: Json) -> str:
    tokens = read_number(token.get("num_tokens")).value
    over = "" if tokens is None else f" over {fmt.plural(int(tokens), 'token')}"
    if token.get("exact") is True:
        return f"Exact: the two sides give the same number for every token{over}."
    absolute, k3 = read_number(token.get("mean_abs_log_ratio")), read_number(token.get("k3"))
    if absolute.value is None:
        return f"The mean absolute log-ratio cannot be had: {absolute.reason}."
    sentence = f"On average a token's log-probability moves by {fmt.number(absolute.value)} nats{over}"
    if k3.value is not None:
        sentence += f"; K3 is {fmt.number(k3.value)} nats per token"
    return sentence + "."


def _facts(token: Json) -> Table:
    tokens = read_number(token.get("num_tokens")).n or read_number(token.get("num_tokens")).value
    rows = [
        fact(
            "K3 (nats)", pick(token, "k3"), "KL(mu || pi) per token, never negative; heavy tails dominate it"
        ),
        fact(
            "K1 (nats)",
            pick(token, "k1"),
            "The same KL, unbiased; negative means more noise than drift, or a bug",
        ),
        fact(
            "K2 (nats)", pick(token, "k2"), "Half the mean square: little noise, biased when drift is large"
        ),
        fact(
            "Mean log-ratio (nats)",
            pick(token, "mean_log_ratio"),
            "At most 0 in truth; clearly positive proves a bug",
        ),
        fact("Mean |log-ratio| (nats)", pick(token, "mean_abs_log_ratio"), "Typical size of the drift"),
        fact("Max |log-ratio| (nats)", pick(token, "max_abs_log_ratio"), "The worst single token"),
        fact(
            "Mean ratio",
            pick(token, "mean_ratio"),
            "1 in truth; below 1 estimates probability cut off by sampling",
            fmt.near_one,
        ),
        fact("Chi-squared", pick(token, "chi2"), "Variance of the token ratio"),
        fact("Renyi-2 (nats)", pick(token, "renyi2"), "Log of the mean squared ratio; never overflows"),
        fact(
            "K3, clamped (nats)",
            pick(token, "k3_clamped"),
            f"With log-ratios within 20 nats, as some frameworks log it; {_clamped(token)}",
        ),
        fact("Chi-squared, clamped", pick(token, "chi2_clamped"), "The same clamp"),
        fact(
            "Design effect",
            pick(token, "design_effect"),
            "By which prompts that differ, and tokens that depend on each other, shrink the sample",
        ),
    ]
    note = (
        "" if tokens is None else f"n = {fmt.plural(int(tokens), 'token')}; 95 % intervals resample prompts."
    )
    return fact_table("token-facts", "Key numbers per token", rows, note)


def _clamped(token: Json) -> str:
    count = read_number(token.get("num_clamped")).value
    return (
        "how many tokens that moves is not reported"
        if count is None
        else f"moves {fmt.plural(int(count), 'token')}"
    )


def _binary(token: Json) -> Table:
    binary = read_mapping(token.get("binary"))
    rows = [
        fact(
            "Total variation", pick(binary, "tv"), "Mean |pi - mu| of the sampled token: DPPO-TV masks by it"
        ),
        fact(
            "KL(mu || pi) (nats)",
            pick(binary, "kl_rollout_train"),
            "Of 'this token or any other': DPPO-KL masks by it",
        ),
        fact("KL(pi || mu) (nats)", pick(binary, "kl_train_rollout"), "The other direction"),
        fact(
            "|logit displacement| (nats)",
            pick(binary, "abs_logit_displacement"),
            "Mean distance of the logits of the sampled token: drift without the softmax's compression near 1",
        ),
    ]
    left_out = read_number(binary.get("num_left_out")).value
    note = ""
    if left_out:
        note = (
            f"{fmt.plural(int(left_out), 'token')} with a probability of exactly 1 on one side only: "
            "left out of all but total variation, since no finite value exists there."
        )
    return fact_table("token-binary", "The sampled token against all others", rows if binary else [], note)


def _quantiles(quantiles: Json) -> Table:
    levels = read_list(quantiles.get("levels"))
    signed, absolute = read_list(quantiles.get("log_ratio")), read_list(quantiles.get("abs_log_ratio"))
    rows = []
    for level, left, right in zip_longest(levels, signed, absolute):
        value = read_number(level).value
        if value is None:
            continue
        rows.append((Cell(fmt.level(value)), estimate_cell(left), estimate_cell(right)))
    columns = (Column("Quantile", numeric=False), Column("Log-ratio (nats)"), Column("|Log-ratio| (nats)"))
    return Table("token-quantiles", "Quantiles of the log-ratio", columns, tuple(rows))


def _extreme(token: Json) -> Table:
    rows = []
    for item in read_rows(token.get("extreme")):
        tau = read_number(item.get("tau")).value
        name = (
            "ratio beyond an unnamed factor"
            if tau is None
            else f"ratio above {fmt.tick(tau)} or below 1/{fmt.tick(tau)}"
        )
        rows.append((Cell(name), estimate_cell(pick(item, "rate"), fmt.percent)))
    share = read_mapping(token.get("top_share"))
    fraction = read_number(share.get("fraction")).value
    if fraction is not None:
        worst = f"the worst {fmt.level(fraction)} of tokens"
        rows.append((Cell(f"share of all K3 in {worst}"), estimate_cell(pick(share, "k3"), fmt.percent)))
        rows.append(
            (
                Cell(f"share of all |log-ratio| in {worst}"),
                estimate_cell(pick(share, "abs_log_ratio"), fmt.percent),
            )
        )
    columns = (Column("Tail", numeric=False), Column("Share of tokens, or of the sum"))
    return Table("token-tail", "Extreme tokens", columns, tuple(rows))


def _worst(token: Json) -> Table:
    rows = []
    for item in read_rows(token.get("worst")):
        place = [
            estimate_cell(pick(item, key), fmt.integer).text for key in ("cluster", "sequence", "position")
        ]
        logprobs = [
            estimate_cell(pick(item, key)) for key in ("log_ratio", "rollout_logprob", "train_logprob")
        ]
        rows.append((Cell(" / ".join(place)), *logprobs))
    columns = (
        Column("Prompt / sequence / position", numeric=False),
        Column("Log-ratio (nats)"),
        Column("log mu (rollout)"),
        Column("log pi (training)"),
    )
    return Table("worst-tokens", "Worst tokens", columns, tuple(rows), collapsed=True)
