"""Every example that README, docs and `--help` print: code blocks, and commands inside of a line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from mismatch_probe_cli.app import app

ROOT = Path(__file__).parents[2]
COMMANDS = ("mismatch-probe", "python", "make", "pip", "ray")
Kind = Literal["shell", "python", "toml"]


@dataclass(frozen=True)
class Example:
    """What is printed in one place.

    Attributes:
        where: File and line, or the verb whose help it is.
        kind: The language.
        text: Without the indent.
    """

    where: str
    kind: Kind
    text: str


def pages() -> list[Path]:
    """README and every page of the documentation but cli.md, which repeats the examples of `--help`."""
    return [
        ROOT / "README.md",
        *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.name != "cli.md"),
    ]


def printed() -> list[Example]:
    """All of them, in the order of the files."""
    found = [example for page in pages() for example in in_page(page)]
    return found + [example for name, text in help_texts() for example in in_help(name, text)]


def help_texts() -> Iterator[tuple[str, str]]:
    """Each verb with the text that its --help prints."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for name, command in group.commands.items():
        if not command.hidden:
            yield name, f"{command.help or ''}\n{command.epilog or ''}"


def in_help(name: str, text: str) -> Iterator[Example]:
    """Commands in backticks."""
    for command in _spans(text):
        yield Example(f"{name} --help", "shell", command)


def in_page(page: Path) -> Iterator[Example]:
    """Code blocks with something to run, then commands in backticks."""
    text = page.read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT))
    for line, block in blocks(text):
        kind = kind_of(block)
        if kind is not None:
            yield Example(f"{name}:{line}", kind, block)
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    for command in _spans(prose):
        yield Example(name, "shell", command)


def _spans(text: str) -> list[str]:
    """Commands in backticks that say more than the verb's name."""
    spans = (" ".join(span.split()) for span in re.findall(r"`(mismatch-probe [^`]+)`", text))
    return list(dict.fromkeys(spans))


def blocks(text: str) -> list[tuple[int, str]]:
    """Fenced and indented code blocks with the number of their first line."""
    found: list[tuple[int, str]] = []
    held: list[str] = []
    fenced, start, after_blank = False, 0, True
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.strip().startswith("```"):
            if fenced:
                found.append((start, "\n".join(held)))
            held, fenced, start = [], not fenced, number + 1
        elif fenced:
            held.append(line)
        elif line.startswith("    ") and (held or after_blank):
            start = start if held else number
            held.append(line[4:])
        elif not line.strip() and held:
            held.append("")
        elif held:
            found.append((start, "\n".join(held).strip("\n")))
            held = []
        if not fenced:
            after_blank = not line.strip()
    if held:
        found.append((start, "\n".join(held).strip("\n")))
    return found


def kind_of(block: str) -> Kind | None:
    """The language of a block; None for output, trees and formulas."""
    lines = [line for line in block.splitlines() if line.strip()]
    if any(line.split()[0] in COMMANDS for line in lines):
        return "shell"
    if any(re.match(r"(from \S+ )?import \S", line) for line in lines):
        ast.parse(block)
        return "python"
    if any(re.fullmatch(r"\[+[\w.]+\]+", line.split("#")[0].strip()) for line in lines):
        return "toml"
    return None
