"""What `export` would write for this run, to be copied from the page."""

from __future__ import annotations

from dataclasses import dataclass

from mismatch_probe_reports.format import clean
from mismatch_probe_reports.reading import Json, why_absent

SHOWN = {"verl": "verl (YAML)", "trl": "TRL's GRPOConfig (YAML)"}


@dataclass(frozen=True, slots=True)
class Snippet:
    """One text to copy.

    Attributes:
        label: What it is.
        text: As `export` writes it.
        notes: What the framework cannot express.
        missing: Why there is none; empty where there is.
    """

    label: str
    text: str = ""
    notes: tuple[str, ...] = ()
    missing: str = ""


def build_snippets(result: Json) -> tuple[Snippet, ...]:
    """The exports of the frameworks that most runs are for, and the commands for the others."""
    from mismatch_probe.errors import MismatchProbeError
    from mismatch_probe.export import available_exporters, export_config

    if why_absent(result.get("recommendation")):
        return ()
    snippets = []
    for name, label in SHOWN.items():
        try:
            exported = export_config(result, name)
        except MismatchProbeError as error:
            snippets.append(Snippet(label, missing=clean(error)))
        except (KeyError, TypeError, AttributeError, ValueError):
            # A result of another program may lack what an exporter reads; the page of it is drawn all the same.
            snippets.append(Snippet(label, missing="this result lacks numbers that an export is made from"))
        else:
            text = "\n".join(clean_line(line) for line in exported.text.splitlines())
            snippets.append(Snippet(label, text, tuple(clean(note) for note in exported.notes)))
    others = [name for name in available_exporters() if name not in SHOWN]
    commands = "\n".join(f"mismatch-probe export RUN --to {name}" for name in others)
    return (*snippets, Snippet("Other frameworks (commands; RUN is the run's directory)", commands))


def clean_line(line: str) -> str:
    """A line without control characters, its indent kept."""
    indent = len(line) - len(line.lstrip(" "))
    return " " * indent + clean(line)
