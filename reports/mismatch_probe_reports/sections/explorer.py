"""Token explorer: chosen sequences, token by token. Only the page has it, and only where the run's tokens are there."""

from __future__ import annotations

from dataclasses import dataclass

from mismatch_probe_reports import format as fmt
from mismatch_probe_reports.reading import Json, read_float, read_rows, read_text
from mismatch_probe_reports.tables import Cell, Column, Table

WORST_TOKENS = 20
# Nats of |l|: what BF16 does to a token, then factors of about 1.1, 1.6 and 7 between the two probabilities.
SHADES = (0.02, 0.1, 0.5, 2.0)
REDACTED = {
    "hash": "Texts and ids are redacted: equal tokens have equal labels.",
    "full": "Texts and ids are redacted.",
}


@dataclass(frozen=True, slots=True)
class Token:
    """One token as the page shows it: text, shade, what is read out, and what the filter compares."""

    text: str
    shade: str
    title: str
    log_ratio: str
    flips: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence: its heading, what it is sorted by, and the tokens shown."""

    heading: str
    log_weight: str
    max_abs: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Explorer:
    """The whole explorer; `missing` says why there is none."""

    missing: str = ""
    notes: tuple[str, ...] = ()
    sequences: tuple[Sequence, ...] = ()
    has_flips: bool = False
    table: Table | None = None


def build_explorer(raw: Json) -> Explorer:
    """Build the explorer from what `mismatch_probe.stages.token_explorer.explorer_section` returns.

    Args:
        raw: Sequences with their tokens, or `{"available": False, "reason": ...}`.
    """
    if raw.get("available") is not True:
        return Explorer(missing=read_text(raw.get("reason"), "the run's tokens were not read"))
    redact = read_text(raw.get("redact"), "none")
    flips_reason = read_text(raw.get("flips_reason"))
    notes = [
        "Each token is shaded by its |log-ratio| (training minus rollout): from "
        + ", ".join(f"{edge:g}" for edge in SHADES)
        + " nats on. Orange: the trainer finds it likelier than the rollout; blue: less likely."
    ]
    if redact in REDACTED:
        notes.append(REDACTED[redact])
    elif raw.get("text") is not True:
        notes.append("The tokenizer is not on this machine: ids are shown.")
    if flips_reason:
        notes.append(f"Flipped experts are not known: {flips_reason}.")
    left_out = read_float(raw.get("left_out")) or 0
    if left_out:
        notes.append(f"{fmt.plural(int(left_out), 'sequence')} left out: the page is held below 1 MB.")
    rows = read_rows(raw.get("sequences"))
    return Explorer(
        notes=tuple(notes),
        sequences=tuple(_sequence(row) for row in rows),
        has_flips=not flips_reason,
        table=_worst(rows),
    )


def _sequence(row: Json) -> Sequence:
    tokens = read_rows(row.get("tokens"))
    begin = int(read_float(row.get("begin")) or 0)
    weight, largest = (
        read_float(row.get("log_weight")) or 0.0,
        read_float(row.get("max_abs_log_ratio")) or 0.0,
    )
    heading = (
        f"Sequence {fmt.scalar(row.get('sequence'))}: {read_text(row.get('why'))}; "
        f"log W {fmt.number(weight)} nats, largest |log-ratio| {fmt.number(largest)} nats; "
        f"tokens {begin} to {begin + len(tokens) - 1} of {fmt.scalar(row.get('length'))}"
    )
    return Sequence(heading, f"{weight:.6g}", f"{largest:.6g}", tuple(_token(token) for token in tokens))


def _token(token: Json) -> Token:
    log_ratio = read_float(token.get("log_ratio")) or 0.0
    flips = token.get("flipped_layers")
    shade = sum(abs(log_ratio) >= edge for edge in SHADES)
    name, entropy = _name(token), read_float(token.get("entropy"))
    parts = [
        f"{name!r} at {fmt.scalar(token.get('position'))}"
        if name
        else f"at {fmt.scalar(token.get('position'))}",
        f"log-ratio {fmt.number(log_ratio)}",
        f"p rollout {_write(token, 'rollout_p')}, train {_write(token, 'train_p')}",
    ]
    if token.get("text") is not None and token.get("id") is not None:
        parts.insert(1, f"id {fmt.scalar(token.get('id'))}")
    if entropy is not None:
        parts.append(f"entropy {fmt.number(entropy)}")
    if flips:
        parts.append(f"flipped in layers {', '.join(map(str, flips))}")
    return Token(
        text=name or "\u25a1 ",
        shade="" if not shade else f"{'up' if log_ratio > 0 else 'down'}-{shade}",
        title="; ".join(parts),
        log_ratio=f"{log_ratio:.4g}",
        flips=len(flips or ()),
    )


def _name(token: Json) -> str:
    text, number = token.get("text"), token.get("id")
    if isinstance(text, str):
        # Labels and ids need a gap; a token's own text brings its blanks.
        return text if number is not None else f"{text} "
    return "" if number is None else f"{number} "


def _write(token: Json, key: str) -> str:
    value = read_float(token.get(key))
    return fmt.NOT_AVAILABLE if value is None else fmt.number(value)


def _worst(rows: list[Json]) -> Table:
    tokens = [(row, token) for row in rows for token in read_rows(row.get("tokens"))]
    tokens.sort(key=lambda pair: -abs(read_float(pair[1].get("log_ratio")) or 0.0))
    columns = (
        Column("Token", numeric=False),
        Column("Id"),
        Column("Sequence"),
        Column("Position"),
        Column("Log-ratio (nats)"),
        Column("p rollout"),
        Column("p train"),
        Column("Entropy (nats)", help="Of the training side's next-token distribution."),
        Column("Flipped layers", numeric=False, help="MoE layers whose set of experts differs."),
    )
    cells = tuple(
        (
            Cell(_name(token) or "redacted", code=True),
            Cell("-" if token.get("id") is None else fmt.scalar(token.get("id"))),
            Cell(fmt.scalar(row.get("sequence"))),
            Cell(fmt.scalar(token.get("position"))),
            Cell(_write(token, "log_ratio")),
            Cell(_write(token, "rollout_p")),
            Cell(_write(token, "train_p")),
            Cell(_write(token, "entropy")),
            Cell(", ".join(map(str, token.get("flipped_layers") or ())) or "-"),
        )
        for row, token in tokens[:WORST_TOKENS]
    )
    return Table("explorer-worst", "Worst tokens of these sequences", columns, cells)
