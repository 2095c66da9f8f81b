"""A cause as a page: plain text and Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from mismatch_probe.causes.catalogue.cause import Cause

_FIELDS = (("Symptom", "symptom"), ("Test", "test"), ("Knob", "knob"), ("Effect", "effect"))
_FAMILIES = {
    "data": "Data and alignment",
    "sampling": "What is sampled and logged",
    "weights": "Weights and constants",
    "numerics": "Arithmetic",
    "routing": "Routing of experts",
    "training": "Training",
}
_PREFACE = (
    "# Causes\n\n"
    "Every reason for a mismatch that this tool knows: how it shows, what proves it, what was published about it and\n"
    "what to change. `mismatch-probe explain <id>` prints one; `mismatch-probe explain causes` lists them. Effects\n"
    "without a number say so. How well the diagnosis names them was measured: [planted-faults.md](planted-faults.md).\n"
)


def cause_page(cause: Cause) -> str:
    """Plain text."""
    lines = [f"{cause.code}  {cause.id}: {cause.title}", ""]
    lines += [f"{label + ':':<9}{getattr(cause, field)}" for label, field in _FIELDS]
    lines += ["", "What to change:", *(f"  {where}: {what}" for where, what in cause.remedies)]
    return "\n".join([*lines, "", f"Sources: {'; '.join(cause.sources)}"])


def cause_markdown(cause: Cause, *, level: int = 1) -> str:
    """Markdown, with a heading of the given level."""
    lines = [f"{'#' * level} {cause.id} ({cause.code}): {cause.title}", ""]
    lines += [f"- **{label}.** {getattr(cause, field)}" for label, field in _FIELDS]
    lines += ["- **What to change.**", *(f"    - {where}: {what}" for where, what in cause.remedies)]
    return "\n".join([*lines, f"- **Sources.** {'; '.join(cause.sources)}", ""])


def catalogue_markdown(causes: Iterable[Cause]) -> str:
    """All causes as one Markdown document, by family."""
    by_family: dict[str, list[Cause]] = {}
    for cause in causes:
        by_family.setdefault(cause.family, []).append(cause)
    parts = [_PREFACE]
    for family, title in _FAMILIES.items():
        if family in by_family:
            parts.append(f"## {title}\n")
            parts += [cause_markdown(cause, level=3) for cause in by_family[family]]
    return "\n".join(parts)
