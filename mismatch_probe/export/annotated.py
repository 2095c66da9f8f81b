"""YAML, TOML and shell arguments whose every key carries the measurement that set it."""

from __future__ import annotations

import json
import math
import shlex
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_WIDTH = 100

Scalar = bool | int | float | str | None
# A tuple is a list of scalars or of mappings to scalars.
Value = Scalar | tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One key.

    Attributes:
        key: Dotted path.
        value: A scalar, or a tuple of scalars or mappings.
        because: Which measurement set it, for the comment.
    """

    key: str
    value: Value
    because: str


def scalar(value: Scalar) -> str:
    """A YAML scalar that every parser reads back as the same type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Always quoted: bare 0.5_5.0 is the number 0.55 to a YAML 1.1 parser.
        return json.dumps(value)
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise ValueError("a config has no infinity or NaN")
    text = f"{value:.10g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        # YAML 1.1 takes 1e-05 for a string; it wants a point in the mantissa.
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}"
    return text if "." in text else f"{text}.0"


def comment(text: str, indent: int = 0) -> list[str]:
    """A comment wrapped to a readable width; control characters and line breaks become spaces."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    prefix = " " * indent + "# "
    lines = textwrap.wrap(
        clean, _WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False
    )
    return lines or [prefix.rstrip()]


def render(head: Iterable[str], entries: Iterable[Entry], tail: Iterable[str] = ()) -> str:
    """Writes the document.

    Args:
        head: Comment paragraphs on top.
        entries: Keys; those with a common prefix must follow each other.
        tail: Comment paragraphs (each wrapped) below.

    Returns:
        YAML ending with a line break.
    """
    lines: list[str] = []
    for paragraph in head:
        lines += comment(paragraph)
    open_path: list[str] = []
    for entry in entries:
        *parents, leaf = entry.key.split(".")
        shared = 0
        while shared < min(len(parents), len(open_path)) and parents[shared] == open_path[shared]:
            shared += 1
        for depth in range(shared, len(parents)):
            lines.append(f"{'  ' * depth}{parents[depth]}:")
        open_path = parents
        indent = 2 * len(parents)
        lines += comment(entry.because, indent)
        lines.append(f"{' ' * indent}{leaf}: {flow(entry.value)}")
    for paragraph in tail:
        lines += comment(paragraph)
    return "\n".join(lines) + "\n"


def render_toml(head: Iterable[str], entries: Iterable[Entry], tail: Iterable[str] = ()) -> str:
    """The same as TOML: one table a parent path, in the order of the entries.

    Raises:
        ValueError: A value is None, which TOML cannot say.
    """
    lines = [line for paragraph in head for line in comment(paragraph)]
    table = ""
    for entry in entries:
        parent, _, leaf = entry.key.rpartition(".")
        if parent != table:
            lines += ["", f"[{parent}]"]
            table = parent
        if entry.value is None:
            raise ValueError(f"TOML has no null for {entry.key}")
        lines += [*comment(entry.because), f"{leaf} = {flow(entry.value)}"]
    lines += [line for paragraph in tail for line in comment(paragraph)]
    return "\n".join(lines) + "\n"


def render_arguments(
    head: Iterable[str], entries: Iterable[Entry], tail: Iterable[str] = (), *, hydra: bool = False
) -> str:
    """A bash array MISMATCH_ARGS of command-line arguments, to be added to a launch script.

    Args:
        head: Comment paragraphs on top.
        entries: Keys; True is a flag without a value.
        tail: Comment paragraphs below.
        hydra: Whether every entry is written as KEY=VALUE, for Hydra, instead of as `--key value`.
    """
    lines = [line for paragraph in head for line in comment(paragraph)]
    lines.append("MISMATCH_ARGS=(")
    for entry in entries:
        words = overrides([entry]) if hydra else [f"--{entry.key}", *_words(entry.value)]
        lines += [*comment(entry.because, 2), f"  {' '.join(words)}"]
    lines.append(")")
    lines += [line for paragraph in tail for line in comment(paragraph)]
    return "\n".join(lines) + "\n"


def overrides(entries: Iterable[Entry]) -> list[str]:
    """The same keys as Hydra overrides, one a line, quoted for a POSIX shell where needed."""
    return [f"{entry.key}={_hydra(entry.value)}" for entry in entries]


def flow(value: Any) -> str:
    """A value on one line: a scalar, or a tuple of scalars or of mappings to scalars."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(flow, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {scalar(item)}" for key, item in value.items()) + "}"
    return scalar(value)


def _words(value: Value) -> list[str]:
    if value is True:
        return []
    items = value if isinstance(value, tuple) else (value,)
    return [shlex.quote(item) if isinstance(item, str) else scalar(item) for item in items]


def _hydra(value: Any) -> str:
    # Hydra reads 0.5_5.0 as a number unless the quotes reach it, so the shell's quotes go around its own.
    if isinstance(value, str) and not value.replace("_", "").isalnum():
        return "'\"" + value + "\"'"
    return value if isinstance(value, str) else scalar(value)
