"""Token drift by probability, position, entropy, prompt and class of the token."""

from __future__ import annotations

import math

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
from mismatch_probe_reports.tables import Cell, Column, Table, estimate_cell

WORST_PROMPTS = 10
CAPTIONS = {
    "probability": "By probability (geometric mean of the two sides, so that selection does not fake a trend)",
    "position": "By position in the response (from the first number up to, but without, the second)",
    "entropy": "By entropy of the training side (nats)",
    "token_class": "By kind of text that the token stands for",
}


def bucket_tables(token: Json) -> list[Table]:
    """Return a table for each way that the tokens were divided; the prompts with the largest K3 only.

    Args:
        token: The section `token` of a result.
    """
    names = [read_text(name) for name in read_list(token.get("token_class_names"))]
    tables = []
    for key, raw in read_mapping(token.get("buckets")).items():
        name, buckets = fmt.clean(key), read_rows(raw)
        if name == "prompt":
            tables.append(_prompts(buckets))
        elif name == "token_class":
            tables.append(_table(name, CAPTIONS[name], [(_class_name(b, names), b) for b in buckets]))
        else:
            caption = CAPTIONS.get(name, f"By {name}")
            tables.append(_table(name, caption, [(bucket_range(b), b) for b in buckets]))
    return tables


def bucket_range(bucket: Json) -> str:
    """Write the half-open range of a bucket."""
    low, high = read_number(bucket.get("low")).value, read_number(bucket.get("high")).value
    label = read_text(bucket.get("label"))
    if label:
        return label
    if low is not None and low == high:
        return fmt.tick(low)
    if low is None and high is None:
        return "range not reported"
    if high is None:
        return f"{fmt.tick(low or 0.0)} and more"
    return f"below {fmt.tick(high)}" if low is None else f"{fmt.tick(low)} to {fmt.tick(high)}"


def _prompts(buckets: list[Json]) -> Table:
    """Return the prompts with the largest K3, worst first; a K3 that left float64 is larger than any number."""

    def badness(bucket: Json) -> float:
        value = read_number(bucket.get("k3")).value
        return math.inf if value is None else value

    worst = sorted(buckets, key=badness, reverse=True)[:WORST_PROMPTS]
    if len(worst) < len(buckets):
        caption = f"By prompt: the {len(worst)} of {len(buckets)} with the largest K3 (number of the prompt)"
    else:
        caption = "By prompt, largest K3 first (number of the prompt)"
    return _table("prompt", caption, [(bucket_range(bucket), bucket) for bucket in worst])


def _class_name(bucket: Json, names: list[str]) -> str:
    """Return the name of a class, or its number where the result does not name it."""
    label = read_number(bucket.get("low")).value
    if label is not None and label.is_integer() and 0 <= label < len(names) and names[int(label)]:
        return names[int(label)]
    return f"class {bucket_range(bucket)}"


def _table(name: str, caption: str, buckets: list[tuple[str, Json]]) -> Table:
    columns = (
        Column(name.capitalize().replace("_", " "), numeric=False),
        Column("Tokens"),
        Column("Mean log-ratio (nats)"),
        Column("Mean |log-ratio| (nats)"),
        Column("K3 (nats)"),
    )
    rows = tuple(
        (
            Cell(label),
            estimate_cell(pick(bucket, "n"), fmt.integer),
            *(_value(bucket, key) for key in ("mean_log_ratio", "mean_abs_log_ratio", "k3")),
        )
        for label, bucket in buckets
    )
    return Table(f"buckets-{name}", caption, columns, rows, collapsed=len(rows) > 12)


def _value(bucket: Json, key: str) -> Cell:
    if bucket.get(key) is None and read_number(bucket.get("n")).value == 0:
        return Cell(fmt.NOT_AVAILABLE, reason="no tokens in this bucket", tone="muted")
    return estimate_cell(bucket.get(key))
